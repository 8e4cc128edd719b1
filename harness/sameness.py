"""Sameness of texts and people's ids: what a person would call the same, however it is written."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import polars as pl

INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufe0e\ufe0f]")  # widthless characters


def same_writing(text: str) -> str:
    """Return the text in one Unicode form (NFKC), without invisible characters, with single spaces and no outer ones."""
    if text.isascii():  # has one form and nothing invisible
        return " ".join(text.split())
    return " ".join(INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).split())


def same_reading(text: str) -> str:
    """Return the text as `same_writing` does, without the difference of upper and lower case."""
    return same_writing(text).casefold()


def group_equal_rows(frame: pl.DataFrame) -> np.ndarray:
    """Return int64[n]: for every row of the frame, the first row that is equal.

    Rows are compared by 64-bit hashes. Among 2 million different rows, any two share a hash with probability 1e-7.
    """
    _, first, group = np.unique(frame.hash_rows().to_numpy(), return_index=True, return_inverse=True)
    return first[group]
