"""Features of text items, computed by a named encoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import field

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.encode import (
    HASHING_NAME,
    HashingEncoder,
    parse_encoder,
    parse_encoding_model,
    stored_vectors,
)
from harness.inference.jobs import require_store
from harness.inference.words import WORDS_VERSION, visible_tokens
from harness.store.store import Store

ROWS_AT_ONCE = 16_384  # rows of features in double precision at the same time
TFIDF_NAME = re.compile(r"tfidf-svd-([1-9]\d*)")


def check_encoder(name: str) -> None:
    """Raise UserError where `name` is not tfidf-svd-DIM or an encoder of harness/inference/encode.py."""
    if not TFIDF_NAME.fullmatch(str(name)):
        parse_encoder(str(name))


def encoder_field(default: str = "tfidf-svd-128") -> str:
    """Return a task's field `encoder`. The task's identity contains the canonical name, see `canonical_encoder`."""
    return field(default=default, metadata={"identity": canonical_encoder})


def canonical_encoder(name: str) -> str:
    """Return a name that determines the vectors: of a local model the content, not the path.

    The name of an encoder that counts words ends in the version of `words.visible_tokens`. Other names, such as
    "numbers" of the task `attributes`, are returned as they are.
    """
    if ":" in name:
        return parse_encoding_model(name).canonical_name
    counts_words = TFIDF_NAME.fullmatch(name) or HASHING_NAME.fullmatch(name)
    return f"{name}?words={WORDS_VERSION}" if counts_words else name


def encode_items(table: pa.Table, name: str, store: Store | None = None) -> np.ndarray:
    """Return float32[n, dim]: features of items (columns prompt and response) from the encoder of that name.

    `tfidf-svd-DIM`: TF-IDF of the responses' tokens (`words.visible_tokens`: words, case, punctuation, emoji, line
    breaks, but no order), then truncated SVD (latent semantic analysis; Deerwester et al. 1990). The fit uses all texts
    of the task, test users' included, but no labels. A token counts 1 + log(count). Texts are not scaled to length one: a
    longer text has a longer vector, and people's choices depend on length. The other encoders are described in
    harness/inference/encode.py. A language model's vectors must be in the store; otherwise NotCachedError carries the
    job that computes them.

    Of a language model's vectors, `standardize` gives every dimension the same variance, and `pca` keeps the leading
    principal components; both are fitted to all items of the task, without labels, as `tfidf-svd` is.

    All features are scaled by one number that makes the columns' mean variance 1/2. A dimension of the gap between two
    texts then has variance 1 on average, as in `low_rank`; leading columns have more, the last ones less. The columns'
    means are kept: they are what all texts share.

    store: the store of a language model's vectors; `tfidf-svd` and `hashing` need none.
    """
    if found := TFIDF_NAME.fullmatch(name):
        features = tfidf_svd(table["response"].to_pylist(), int(found[1]), name)
    elif isinstance(encoder := parse_encoder(name), HashingEncoder):
        features = encoder.vectors(table["response"].cast(pa.large_string()))
    else:
        features = stored_vectors(table, name, require_store(store, name))
        features = reduced_vectors(features, encoder["standardize"], encoder["pca"], name)
    scale, scaled = np.sqrt(2 * column_variances(features).mean()), np.empty(features.shape, dtype=np.float32)
    for start in range(0, len(features), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scaled[rows] = features[rows].astype(np.float64) / scale
    return scaled


def reduced_vectors(features: np.ndarray, standardize: bool, components: int, name: str) -> np.ndarray:
    """Return float[n, components or d]: centred vectors of equal variances, if asked for, and their principal components.

    Dimensions that never vary stay 0. Raises UserError where there are not so many components.
    """
    if not standardize and not components:
        return features
    x = features.astype(np.float64)
    x -= x.mean(axis=0)
    if standardize:
        spread = np.sqrt(column_variances(x))
        x = np.divide(x, spread, out=np.zeros_like(x), where=spread > 0)
    if not components:
        return x
    if components > min(x.shape):
        raise UserError(
            f"{name}: {len(x)} vectors of {x.shape[1]} dimensions have no {components} components",
            f"pca={min(x.shape)}",
        )
    from sklearn.decomposition import PCA

    return PCA(components, svd_solver="covariance_eigh").fit_transform(x)


def column_variances(features: np.ndarray) -> np.ndarray:
    """Return float64[d], the variance of each column, in double precision.

    Rows are added up block by block, in their order: the same bits as `features.astype(float64).var(0)`, in less memory.
    """

    def total(values: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        sum_of = None
        for start in range(0, len(features), ROWS_AT_ONCE):
            part = values(features[start : start + ROWS_AT_ONCE].astype(np.float64))
            sum_of = np.add.reduce(part if sum_of is None else np.concatenate([sum_of[None], part]), axis=0)
        return np.zeros(features.shape[1]) if sum_of is None else sum_of

    mean = total(lambda part: part) / len(features)
    return total(lambda part: (part - mean) ** 2) / len(features)


def tfidf_svd(texts: list[str], dim: int, name: str) -> np.ndarray:
    """Return float64[n, dim]: TF-IDF reduced by SVD. Raises UserError where the texts have fewer dimensions."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        counts = TfidfVectorizer(analyzer=visible_tokens, norm=None, sublinear_tf=True).fit_transform(texts)
    except ValueError as error:
        raise UserError(f"{name}: the {len(texts)} responses are empty", "check the column `response`") from error
    if dim >= min(counts.shape):
        raise UserError(
            f"{name}: {len(texts)} texts of {counts.shape[1]} distinct words and marks are too few for {dim} dimensions",
            f'use at most encoder = "tfidf-svd-{min(counts.shape) - 1}"',
        )
    return TruncatedSVD(dim, random_state=0).fit_transform(counts)
