"""Ratings and votes as data sets of pairs: few pairs for each answer, so that no person counts more than they answered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from harness.data import ASKED_IN_TEST, SHOWN, TEXT_SCHEMA, Items, PreferenceDataset
from harness.errors import UserError
from harness.rows import user_numbers

ROUNDS = 4  # of pairs, drawn until a person has as many untied pairs as ratings; later rounds only replace ties


def from_ratings(
    frame: pl.DataFrame, items: Items, n_asked: int, seed: int, keep_ties: bool = False, min_ratings: int = 4
) -> PreferenceDataset:
    """Build a data set of pairs from ratings on a scale, with the ratings kept beside the pairs (`Pairs.ratings`).

    A person's rated items are divided at random into those of query pairs, at most `n_asked` and at least two, and those
    that a method may be shown, so that no query is about an item whose rating was shown. Within each part, and within a
    prompt where there are prompts, every item is compared with the next one of a random order. So there is about one
    pair for each rating: all pairs of 150 ratings would be 11,175, of which 149 are independent. Where ratings tie,
    further orders are drawn until there are as many untied pairs as ratings.

    frame: a row per rating: user, item (row of `items`), rating and group (of items that may be compared: a number).
    keep_ties: keep the tied pairs of the first order, with the label .5.
    People with fewer than `min_ratings` ratings, or without an untied pair in both parts, are left out.
    """
    ids, person = user_numbers(frame["user"])
    rating, group = frame["rating"].to_numpy().astype(np.float64), frame["group"].to_numpy()
    item = frame["item"].to_numpy()
    rng = np.random.default_rng([seed, len(frame)])
    part = asked_part(rng, person, group, n_asked)
    block = joint_numbers(person, part, group)
    left, right = draw_cycles(rng, block, rating, keep_ties)
    user = person[left]
    tie = rating[left] == rating[right]
    counts = np.bincount(person, minlength=len(ids))
    both = np.zeros((len(ids), 2), dtype=bool)
    both[user[~tie], part[left][~tie]] = True
    kept = (counts >= min_ratings) & both.all(1)
    if not kept.any():
        raise UserError(
            f"none of {len(ids):,} people has {min_ratings} ratings, with two different ones to be shown and to be asked",
            "lower min_ratings, or compare across prompts by leaving out the column of prompts",
        )
    rows = np.flatnonzero(kept[user])
    rows = rows[np.argsort(user[rows], kind="stable")]
    left, right = left[rows], right[rows]
    swap = rng.random(len(rows)) < 0.5
    left, right = np.where(swap, right, left), np.where(swap, left, right)
    label = np.where(rating[left] == rating[right], 0.5, (rating[left] > rating[right]).astype(float))
    data = PreferenceDataset.from_pairs(frame["user"][left], item[left], item[right], label, items)  # in this order
    both_ratings = np.column_stack([rating[left], rating[right]]).astype(np.float32)
    gone = int((~kept).sum())
    notes = (
        (f"left out: {gone:,} of {len(ids):,} people with fewer than {min_ratings} ratings that differ",)
        if gone
        else ()
    )
    return replace(
        data,
        pairs=replace(data.pairs, ratings=both_ratings),
        parts=np.where(part[left] == 1, ASKED_IN_TEST, SHOWN).astype(np.int8),
        notes=notes,
    )


def asked_part(rng: np.random.Generator, person: np.ndarray, group: np.ndarray, n_asked: int) -> np.ndarray:
    """Return int64[n]: 1 for ratings whose items are asked about, 0 for those that may be shown.

    Of each person's ratings a third, at most `n_asked`, are asked about; whole groups where people rated several.
    """
    which = joint_numbers(person, group)
    _, first = np.unique(which, return_index=True)
    one_group = np.bincount(person[first])[person] == 1  # then single ratings are drawn
    key = np.where(one_group, np.arange(len(person)) + len(person), which)
    _, first, unit_of, size = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    owner = person[first]
    order = np.lexsort((rng.random(len(first)), owner))
    total = np.bincount(person)
    before = np.empty(len(first), dtype=np.int64)
    ends = np.cumsum(size[order])
    before[order] = ends - size[order] - (np.cumsum(total) - total)[owner[order]]
    wanted = np.minimum(n_asked, np.maximum(total // 3, 2))
    return (before < wanted[owner]).astype(np.int64)[unit_of]


def joint_numbers(*columns: np.ndarray) -> np.ndarray:
    """Return int64[n], numbers from 0 that are equal where all columns are."""
    found = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        number = np.unique(column, return_inverse=True)[1]
        found = np.unique(found * (number.max(initial=0) + 1) + number, return_inverse=True)[1]
    return found


def draw_cycles(
    rng: np.random.Generator, block: np.ndarray, rating: np.ndarray, keep_ties: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of compared ratings, int64[m] each: within a block, each with the next one of a random order.

    Untied pairs of further orders are added to blocks with fewer pairs than ratings. No pair comes twice.
    """
    size = np.bincount(block)
    first_row = np.cumsum(size) - size
    kept = np.zeros((0, 2), dtype=np.int64)
    for turn in range(ROUNDS):
        order = np.lexsort((rng.random(len(block)), block))
        start, own = first_row[block[order]], size[block[order]]
        following = order[start + (np.arange(len(order)) - start + 1) % own]
        pairs = np.stack([np.minimum(order, following), np.maximum(order, following)], axis=1)
        untied = rating[pairs[:, 0]] != rating[pairs[:, 1]]
        pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (untied | (keep_ties and turn == 0))]
        _, first = np.unique(np.concatenate([kept, pairs]), axis=0, return_index=True)
        pairs = pairs[np.sort(first[first >= len(kept)]) - len(kept)]
        have = np.bincount(block[kept[:, 0]], minlength=len(size))
        pairs = pairs[np.argsort(block[pairs[:, 0]], kind="stable")]
        of = block[pairs[:, 0]]
        place = np.arange(len(pairs)) - np.searchsorted(of, of)
        kept = np.concatenate([kept, pairs[place < (size - have)[of]]])
    return kept[:, 0], kept[:, 1]


def from_votes(frame: pl.DataFrame, statements: np.ndarray, text: pl.Series) -> PreferenceDataset:
    """Build a data set of pairs from votes on statements: a vote chooses between agreeing and disagreeing.

    frame: a row per vote: row, user, statement (a row of `statements`), and agrees: 1, 0, or .5 for a pass.
    statements: float[n, d], features of statements; an option's features are half of them, with a constant for the
        tendency to agree, and their opposite for disagreeing.
    text: the statements' texts: an item's prompt, to which the responses are "agree" and "disagree".
    Item 2 s is agreeing with statement s, item 2 s + 1 is disagreeing. Sides are drawn at random.
    """
    answers = pl.DataFrame({"prompt": text}).with_columns(response=pl.lit(["agree", "disagree"])).explode("response")
    items = Items(vote_features(statements), answers.to_arrow().cast(TEXT_SCHEMA), columns_share_unit=True)
    statement, label = frame["statement"].to_numpy(), frame["agrees"].to_numpy()
    agree_left = np.random.default_rng(len(frame)).random(len(frame)) < 0.5
    return PreferenceDataset.from_pairs(
        user=frame["user"],
        left=2 * statement + ~agree_left,
        right=2 * statement + agree_left,
        label=np.where(agree_left, label, 1 - label),
        items=items,
        row=frame["row"].to_numpy(),
    )


def vote_features(statements: np.ndarray) -> np.ndarray:
    """Return float[2 n, d + 1]: features of agreeing and disagreeing with each of n statements, float[n, d]."""
    half = np.column_stack([statements, np.ones(len(statements), dtype=statements.dtype)]) / 2
    return np.stack([half, -half], axis=1).reshape(2 * len(half), -1)
