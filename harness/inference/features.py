"""Text data: tables found in a data folder, and items' features by an encoder named in one string."""

from __future__ import annotations

import re
from dataclasses import field

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.encode import (
    WORD_PATTERN,
    HashingEncoder,
    encoder_inputs,
    parse_encoder,
    parse_encoding_model,
    stored_vectors,
)
from harness.inference.jobs import require_store
from harness.store.store import Store

TFIDF_NAME = re.compile(r"tfidf-svd-([1-9]\d*)")


def check_encoder(name: str) -> None:
    """Raises UserError where `name` names no text encoder: tfidf-svd-DIM, or what harness/inference/encode.py knows."""
    if not TFIDF_NAME.fullmatch(str(name)):
        parse_encoder(str(name))


def encoder_field(default: str = "tfidf-svd-128") -> str:
    """A task's field `encoder`. A model in a folder enters the task's identity by its content, not by its path."""
    return field(default=default, metadata={"identity": canonical_encoder})


def canonical_encoder(name: str) -> str:
    """One string for one encoder, whatever a user writes."""
    return parse_encoding_model(name).canonical_name if ":" in name else name


def encode_items(table: pa.Table, name: str, store: Store | None = None) -> np.ndarray:
    """float32[n, dim]: items (columns prompt and response) under the encoder of that name.

    `tfidf-svd-DIM`: TF-IDF of lower-case unigrams of the responses, then truncated SVD (latent semantic analysis;
    Deerwester et al. 1990), fitted on all texts of the task, those of test users too: it never sees a label. Repeats
    count by 1 + log(count), and texts are not scaled to length one: a long text is a long vector, and people's choices
    depend on length. Others: harness/inference/encode.py; a language model's vectors must be in the store, else NotCachedError says what
    makes them.

    For all of them one scalar makes the columns' mean variance 1/2, so that a dimension of the gap between two texts
    has variance 1 on average, as in `low_rank`; the leading columns have more, the last ones less. The mean is kept: it
    is what all texts share.

    store: where a language model's vectors are kept; `tfidf-svd` and `hashing` need none.
    """
    if found := TFIDF_NAME.fullmatch(name):
        features = tfidf_svd(table["response"].to_pylist(), int(found[1]), name)
    elif isinstance(encoder := parse_encoder(name), HashingEncoder):
        one = encoder_inputs(table, name)
        features = np.stack(encoder.start()(one)[0]["vector"].to_numpy()).astype(np.float64)
    else:
        features = stored_vectors(table, name, require_store(store, name)).astype(np.float64)
    return (features / np.sqrt(2 * features.var(0).mean())).astype(np.float32)


def tfidf_svd(texts: list[str], dim: int, name: str) -> np.ndarray:
    """float64[n, dim]. Raises UserError where the texts have fewer dimensions."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        counts = TfidfVectorizer(token_pattern=WORD_PATTERN, norm=None, sublinear_tf=True).fit_transform(texts)
    except ValueError as error:
        raise UserError(f"{name}: the {len(texts)} responses hold no word", "look at the column `response`") from error
    if dim >= min(counts.shape):
        raise UserError(
            f"{name}: {len(texts)} texts of {counts.shape[1]} distinct words have no {dim} dimensions",
            f'encoder = "tfidf-svd-{min(counts.shape) - 1}" is the most',
        )
    return TruncatedSVD(dim, random_state=0).fit_transform(counts)
