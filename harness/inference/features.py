"""Text data: tables found in a data folder, and items' features by an encoder named in one string."""

from __future__ import annotations

import re
from dataclasses import field

import numpy as np
import pyarrow as pa

from harness.errors import Mistake
from harness.inference.encode import WORD, Hashing, encoding_model, inputs, make_encoder, vectors
from harness.inference.jobs import needed
from harness.store.store import Store

TFIDF = re.compile(r"tfidf-svd-([1-9]\d*)")


def check_encoder(name: str) -> None:
    """Raises Mistake where `name` names no text encoder: tfidf-svd-DIM, or what harness/inference/encode.py knows."""
    if not TFIDF.fullmatch(str(name)):
        make_encoder(str(name))


def encoder_field(default: str = "tfidf-svd-128") -> str:
    """A task's field `encoder`. A model in a folder enters the task's identity by its content, not by its path."""
    return field(default=default, metadata={"identity": canonical})


def canonical(name: str) -> str:
    """One string for one encoder, whatever a user writes."""
    return encoding_model(name).canonical if ":" in name else name


def encode(table: pa.Table, name: str, store: Store | None = None) -> np.ndarray:
    """float32[n, dim]: items (columns prompt and response) under the encoder of that name.

    `tfidf-svd-DIM`: TF-IDF of lower-case unigrams of the responses, then truncated SVD (latent semantic analysis;
    Deerwester et al. 1990), fitted on all texts of the task, those of test users too: it never sees a label. Repeats
    count by 1 + log(count), and texts are not scaled to length one: a long text is a long vector, and people's choices
    depend on length. Others: harness/inference/encode.py; a language model's vectors must be in the store, else Lacking says what
    makes them.

    For all of them one scalar makes the columns' mean variance 1/2, so that a dimension of the gap between two texts
    has variance 1 on average, as in `low_rank`; the leading columns have more, the last ones less. The mean is kept: it
    is what all texts share.

    store: where a language model's vectors are kept; `tfidf-svd` and `hashing` need none.
    """
    if found := TFIDF.fullmatch(name):
        features = tfidf_svd(table["response"].to_pylist(), int(found[1]), name)
    elif isinstance(encoder := make_encoder(name), Hashing):
        one = inputs(table, name)
        features = np.stack(encoder.start()(one)[0]["vector"].to_numpy()).astype(np.float64)
    else:
        features = vectors(table, name, needed(store, name)).astype(np.float64)
    return (features / np.sqrt(2 * features.var(0).mean())).astype(np.float32)


def tfidf_svd(texts: list[str], dim: int, name: str) -> np.ndarray:
    """float64[n, dim]. Raises Mistake where the texts have fewer dimensions."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        counts = TfidfVectorizer(token_pattern=WORD, norm=None, sublinear_tf=True).fit_transform(texts)
    except ValueError as error:
        raise Mistake(f"{name}: the {len(texts)} responses hold no word", "look at the column `response`") from error
    if dim >= min(counts.shape):
        raise Mistake(
            f"{name}: {len(texts)} texts of {counts.shape[1]} distinct words have no {dim} dimensions",
            f'encoder = "tfidf-svd-{min(counts.shape) - 1}" is the most',
        )
    return TruncatedSVD(dim, random_state=0).fit_transform(counts)
