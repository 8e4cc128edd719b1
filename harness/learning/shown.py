"""Shown choices of people as tables of items, and texts cut to a length, for methods that put them into a prompt."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from harness.data import Pairs

CutTexts = dict[int, tuple[str, str]]  # row of an item -> its prompt and response, each cut to a number of characters


def shown_choices(pairs: Pairs, max_examples: int) -> np.ndarray:
    """Return int64[3, n_users, k]: the first and the second item of each user's choices, and whether the first is liked.

    liked: 1 where the first is preferred, 0 for a tie; all three are -1 where there is no choice. Choices are sorted by
    their items' numbers, and the preferred item comes first, so that neither order nor side carries information. A pair
    that occurs several times is one choice, with the mean of its labels. k is `max_examples` at most.
    """
    low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
    distinct, row = np.unique(np.stack([pairs.user, low, high]), axis=1, return_inverse=True)
    label = np.where(pairs.left == low, pairs.label, 1 - pairs.label).astype(np.float64)
    gap = np.round(np.bincount(row, label - 0.5) / np.bincount(row), 6)  # rounding errors are not preferences
    user, low, high = distinct
    place = np.arange(len(user)) - np.searchsorted(user, user)
    shown = place < max_examples
    table = np.full((3, pairs.n_users, min(max_examples, place.max(initial=-1) + 1)), -1, dtype=np.int64)
    columns = np.where(gap < 0, high, low), np.where(gap < 0, low, high), (gap != 0)
    table[:, user[shown], place[shown]] = np.stack(columns)[:, shown]
    return table


def cut_texts(table: pa.Table, rows: np.ndarray, max_characters: int) -> CutTexts:
    """Return the texts of the given rows, each cut to `max_characters` characters; rows below 0 are skipped."""
    rows = np.unique(rows[rows >= 0])
    found = table.take(pa.array(rows))
    prompts, responses = (found[name].to_pylist() for name in ("prompt", "response"))
    return {
        r: (cut_text(p, max_characters), cut_text(s, max_characters))
        for r, p, s in zip(rows.tolist(), prompts, responses, strict=True)
    }


def cut_text(text: str, max_characters: int) -> str:
    """Cut a text to at most `max_characters` characters, the last an ellipsis if it was cut."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"
