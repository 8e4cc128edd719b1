"""Sameness of texts and people's ids: what a person would call the same, however it is written."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import polars as pl

INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufe0e\ufe0f]")  # widthless characters
EMPTY_LINES = re.compile(r"\n{3,}")


def same_writing(text: str) -> str:
    """Return the text as it looks: in one Unicode form (NFC), without invisible characters and needless spaces.

    Line breaks are kept, and an empty line is as good as several.
    """
    if not text.isascii():  # ASCII has one form and nothing invisible
        text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()


def same_reading(text: str) -> str:
    """Return the text as it is read: as `same_writing`, without line breaks, case and forms such as full-width letters."""
    return " ".join(unicodedata.normalize("NFKC", same_writing(text)).casefold().split())


def as_read(texts: pl.Series) -> pl.Series:
    """Return `same_reading` of every text. ASCII texts, which have one form and nothing invisible, take one pass together."""
    plain = texts.str.to_lowercase().str.replace_all(r"[\s\x1c-\x1f]+", " ").str.strip_chars(" ")
    others = texts.str.contains(r"[^\x00-\x7f]").arg_true()
    return plain.scatter(others, [same_reading(text) for text in texts[others]]) if len(others) else plain


def group_equal_rows(frame: pl.DataFrame) -> np.ndarray:
    """Return int64[n]: for every row of the frame, the first row that is equal.

    Rows are compared by 64-bit hashes. Among 2 million different rows, any two share a hash with probability 1e-7.
    """
    _, first, group = np.unique(frame.hash_rows().to_numpy(), return_index=True, return_inverse=True)
    return first[group]
