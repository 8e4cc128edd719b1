"""Vectors of items learned from the answers of training people, for items that have neither texts nor numbers."""

from __future__ import annotations

import re

import numpy as np

from harness.errors import UserError

CROWD_NAME = re.compile(r"raters-([1-9]\d*)")


def crowd_dim(encoder: str) -> int | None:
    """Return DIM of an encoder named raters-DIM, and None for any other name."""
    found = CROWD_NAME.fullmatch(encoder)
    return int(found[1]) if found else None


def crowd_vectors(person: np.ndarray, item: np.ndarray, answer: np.ndarray, n_items: int, dim: int) -> np.ndarray:
    """Return float32[n_items, 1 + dim]: each item's mean answer, and how people differ about it.

    person, item: int64[n].  answer: float64[n], ratings or votes. An answer is taken relative to the person's mean. An
    item's mean counts as one answer more at zero; what remains is a sparse matrix of people by items, whose first `dim`
    right singular vectors, times their singular values, are the other columns (Funk 2006 and many since, without the
    missing answers' model). All columns are scaled by one number that makes their mean variance 1/2.

    Raises UserError where people or items are too few for `dim`.
    """
    from scipy.sparse import csr_array
    from sklearn.decomposition import TruncatedSVD

    people, person = np.unique(person, return_inverse=True)
    if dim >= min(len(people), n_items):
        raise UserError(
            f"raters-{dim}: {len(people)} training people and {n_items} items are too few for {dim} dimensions",
            f'use at most encoder = "raters-{max(1, min(len(people), n_items) - 1)}"',
        )
    own_mean = np.bincount(person, answer) / np.bincount(person)
    rest = answer - own_mean[person]
    times = np.bincount(item, minlength=n_items)
    mean = np.bincount(item, rest, minlength=n_items) / (times + 1)
    matrix = csr_array((rest - mean[item], (person, item)), shape=(len(people), n_items))
    found = TruncatedSVD(dim, random_state=0).fit(matrix)
    others = found.components_.T * found.singular_values_ / np.sqrt(len(people))
    vectors = np.column_stack([mean, others])
    return (vectors / np.sqrt(2 * max(vectors.var(0).mean(), 1e-12))).astype(np.float32)
