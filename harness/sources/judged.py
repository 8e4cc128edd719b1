"""Judged responses as pairs: rows with a chosen and a rejected response, or with several and a winner, ranking or ratings."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

import numpy as np
import polars as pl

from harness.errors import UserError, did_you_mean
from harness.rows import options_look_same, user_numbers
from harness.sources.messages import (
    as_messages,
    holds_messages,
    split_marked_text,
    split_shared_messages,
    text_of_messages,
)

TIES = ("tie", "both", "neither", "equal", "draw", "same")  # how a winner's column says that nobody won
MAX_RESPONSES = 26  # to one prompt: rankings name them by letters


def pairs_of_judgements(frame: pl.DataFrame, names: Sequence[str] = ()) -> tuple[pl.DataFrame, list[str]]:
    """Return a row per pair of a table of judgements, and notes on what was left out.

    frame: the columns row, user and, where known, prompt, seconds, part, profile and group; and one of
        chosen and rejected: the preferred and the other response; `label`, P(chosen preferred), where it is not 1;
        responses (lists) and `winner`: a response's letter, its column's name, its place, or "tie";
        responses and `ranking`: "B>A=C", or a list of ranks, of which 1 is the best;
        responses and `ratings`: lists of numbers, of which the largest is the best.
    names: the names of the responses' columns, where each had one.

    Without texts, columns chosen_NAME and rejected_NAME hold numbers of both options.

    Returns the columns row, user, prompt, chosen, rejected, label (1, or .5 for a tie), and the others as they are. Texts
    and lists of messages become text by one rule. Pairs of equal texts are left out, and counted in the notes. Raises
    UserError for the first row that is wrong.
    """
    check_users(frame)
    if "responses" in frame.columns:
        frame = _pairs_of_several(frame, names)
    elif "chosen" in frame.columns:
        frame = with_prompt(frame.with_columns(as_messages(frame["chosen"]), as_messages(frame["rejected"])))
    else:
        return _without_texts(frame)
    texts = {name: text_of_messages(as_messages(frame[name])) for name in ("prompt", "chosen", "rejected")}
    frame = frame.with_columns(**texts)
    if "label" not in frame.columns:
        frame = frame.with_columns(label=pl.lit(1.0))
    for name in ("user", "prompt", "chosen", "rejected"):
        refuse_rows(frame, frame[name].is_null(), f"nothing in column {name}", leave_out(name))
    equal = options_look_same(frame["chosen"], frame["rejected"])
    notes = [f"left out: {equal.sum():,} pairs whose two texts look the same"] if equal.any() else []
    return frame.filter(~equal), notes


def _without_texts(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Return the pairs of options that are numbers alone: a pair per row, without pairs of equal options."""
    if "label" not in frame.columns:
        frame = frame.with_columns(label=pl.lit(1.0))
    numbers = [name.removeprefix("chosen_") for name in frame.columns if name.startswith("chosen_")]
    equal = frame.select(
        pl.all_horizontal(pl.col(f"chosen_{n}") == pl.col(f"rejected_{n}") for n in numbers)
    ).to_series()
    notes = [f"left out: {equal.sum():,} pairs of equal options"] if equal.any() else []
    return frame.filter(~equal), notes


def with_prompt(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with a column prompt: its own, or what chosen and rejected share as conversations, or nothing."""
    if "prompt" in frame.columns:
        return frame
    chosen, rejected = frame["chosen"], frame["rejected"]
    if holds_messages(chosen) != holds_messages(rejected):
        raise UserError(
            "only one of chosen and rejected holds messages, so that form would tell which", "write both alike"
        )
    if holds_messages(chosen):
        prompt, chosen, rejected = split_shared_messages(chosen, rejected)
    elif chosen.dtype == pl.String and (parts := split_marked_text(chosen, rejected)):
        prompt, chosen, rejected = parts
    else:
        prompt = pl.Series("prompt", [""] * len(frame))
    return frame.with_columns(prompt=prompt, chosen=chosen, rejected=rejected)


def _pairs_of_several(frame: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Return a row per pair of responses of which the judgement says that one is better, or that both are alike."""
    require(frame, "prompt")
    if not isinstance(frame["responses"].dtype, pl.List | pl.Array):
        raise UserError(
            f"column responses holds {frame['responses'].dtype}, not lists", "name one column for each response"
        )
    refuse_rows(frame, frame["responses"].is_null(), "no responses", leave_out("responses"))
    size = frame["responses"].list.len().to_numpy().astype(np.int64)
    refuse_rows(frame, pl.Series(size > MAX_RESPONSES), f"more than {MAX_RESPONSES} responses", "keep fewer of them")
    kinds = [name for name in ("winner", "ranking", "ratings") if name in frame.columns]
    if len(kinds) != 1:
        raise UserError(
            f"{' and '.join(kinds) or 'nothing'} says which of the responses is better",
            "name one column: winner, ranking or ratings",
        )
    score = {"winner": _scores_of_winners, "ranking": _scores_of_rankings, "ratings": _scores_of_ratings}[kinds[0]](
        frame, size, names
    )
    n = score.shape[1]
    first, second = np.triu_indices(n, 1)
    a, b = score[:, first], score[:, second]
    judged = np.isfinite(a) & np.isfinite(b)
    if kinds[0] == "winner":  # nobody compared two losers
        judged &= (a > 0) | (b > 0)
    at, pair = np.nonzero(judged)
    wins, loses = first[pair], second[pair]
    swap = a[at, pair] < b[at, pair]
    wins, loses = np.where(swap, loses, wins), np.where(swap, wins, loses)
    tie = a[at, pair] == b[at, pair]
    start = np.cumsum(size) - size
    response = frame["responses"].explode()
    others = frame.drop("responses", kinds[0])[at]
    return others.with_columns(
        chosen=response[start[at] + wins],
        rejected=response[start[at] + loses],
        label=pl.Series(np.where(tie, 0.5, 1.0)),
    )


def _scores_of_winners(frame: pl.DataFrame, size: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return float64[rows, responses]: 1 for the winner and 0 for others, all 1 for a tie; NaN beyond a row's responses."""
    winner, n = frame["winner"], int(size.max(initial=2))
    refuse_rows(frame, winner.is_null(), "no winner", leave_out("winner"))
    if winner.dtype.is_integer():
        place = winner.to_numpy().astype(np.int64)
        if place.min(initial=1) >= 1:
            if place.max(initial=0) < n:
                raise UserError(
                    "the winners' numbers could count from 0 or from 1: neither 0 nor the last place occurs",
                    "say which by a query, for example SELECT *, winner - 1 AS winner FROM data",
                )
            place = place - 1
    elif winner.dtype == pl.String:
        known = places_by_name(names, n)
        found = winner.str.strip_chars().str.to_lowercase().replace_strict(known, default=None, return_dtype=pl.Int64)
        refuse_rows(
            frame,
            found.is_null(),
            "an unknown winner",
            f"write one of {', '.join(known)}, or translate by a query",
            winner,
        )
        place = found.to_numpy()
    else:
        raise UserError(f"column winner holds {winner.dtype}", "write a response's letter, its place, or tie")
    refuse_rows(frame, pl.Series((place >= size) | (place < -1)), "a winner that is no response", "correct it", winner)
    score = np.where(np.arange(n) < size[:, None], 0.0, np.nan)
    score[place == -1] += 1
    won = np.flatnonzero(place >= 0)
    score[won, place[won]] = 1.0
    return score


def places_by_name(names: Sequence[str], n: int) -> dict[str, int]:
    """Return the place of a response by each name that a winner's column may use, in lower case; -1 for a tie.

    A response is named by its column, by the last part of its column's name, or by its letter; also after `model_` or
    `response_`.
    """
    letters = string.ascii_lowercase[:n]
    known = {letter: i for i, letter in enumerate(letters)}
    known |= {f"{kind}_{letter}": i for kind in ("model", "response") for i, letter in enumerate(letters)}
    known |= {name.rpartition("_")[2].lower(): i for i, name in enumerate(names)}
    known |= {name.lower(): i for i, name in enumerate(names)}
    return known | dict.fromkeys(TIES, -1)


def _scores_of_rankings(frame: pl.DataFrame, size: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return float64[rows, responses]: minus the rank; NaN for responses that are not ranked."""
    ranking, n = frame["ranking"], int(size.max(initial=2))
    refuse_rows(frame, ranking.is_null(), "no ranking", leave_out("ranking"))
    if ranking.dtype == pl.String:
        known = {text: ranks_of_text(text, n) for text in ranking.unique()}
        bad = [text for text, ranks in known.items() if ranks is None]
        refuse_rows(frame, ranking.is_in(bad), "a ranking that cannot be read", "write for example B>A=C", ranking)
        score = -np.array([known[text] for text in ranking], dtype=np.float64).reshape(len(frame), n)
    elif isinstance(ranking.dtype, pl.List | pl.Array):
        score = -_matrix(frame, "ranking", size)
    else:
        raise UserError(f"column ranking holds {ranking.dtype}", "write text such as B>A=C, or lists of ranks")
    beyond = (np.isfinite(score) & (np.arange(n) >= size[:, None])).any(axis=1)
    refuse_rows(frame, pl.Series(beyond), "a rank for a response that does not exist", "correct it", ranking)
    return score


def ranks_of_text(text: str, n: int) -> list[float] | None:
    """Return the rank of each of n responses in a text such as "B>A=C", NaN where it is not named; None if unreadable."""
    ranks = [np.nan] * n
    for rank, group in enumerate(re.split(r"\s*>\s*", text.strip())):
        for name in re.split(r"\s*[=~]\s*", group):
            place = string.ascii_lowercase.find(name.lower()) if len(name) == 1 else -1
            if not 0 <= place < n or ranks[place] == ranks[place]:
                return None
            ranks[place] = float(rank)
    return ranks


def _scores_of_ratings(frame: pl.DataFrame, size: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return float64[rows, responses]: the ratings; NaN where there is none."""
    if not isinstance(frame["ratings"].dtype, pl.List | pl.Array):
        raise UserError(f"column ratings holds {frame['ratings'].dtype}, not lists", "name one column for each rating")
    refuse_rows(frame, frame["ratings"].is_null(), "no ratings", leave_out("ratings"))
    return _matrix(frame, "ratings", size)


def _matrix(frame: pl.DataFrame, name: str, size: np.ndarray) -> np.ndarray:
    """Return a column of lists of numbers as float64[rows, responses]; NaN for missing ones and beyond a row's end."""
    column = frame[name].list.eval(pl.element().cast(pl.Float64, strict=False).fill_null(np.nan))
    given = column.list.len().to_numpy()
    refuse_rows(
        frame, pl.Series(given != size), f"another number of {name} than of responses", "give one for each response"
    )
    full = np.full((len(frame), int(size.max(initial=2))), np.nan)
    full[np.arange(full.shape[1]) < size[:, None]] = column.filter(pl.Series(size > 0)).explode().to_numpy()
    return full


def require(frame: pl.DataFrame, *names: str) -> None:
    """Raise UserError where a table of judgements lacks one of the columns."""
    if missing := [name for name in names if name not in frame.columns]:
        raise UserError(
            f"there is no column {', '.join(missing)}; the columns are {', '.join(c for c in frame.columns if c != 'row')}",
            f'name the column that holds it, for example {missing[0]} = "{frame.columns[-1]}"',
        )


def check_users(frame: pl.DataFrame) -> None:
    """Raise UserError for the first row without a person's id, and where two ids look the same."""
    refuse_rows(frame, frame["user"].is_null(), "nothing in column user", leave_out("user"))
    if frame["user"].dtype == pl.String:
        refuse_rows(frame, frame["user"].str.strip_chars() == "", "an empty user", leave_out("user"))
    user_numbers(frame["user"])


def leave_out(column: str) -> str:
    """Return the hint for rows that have nothing in a column."""
    return f"""fill it in, or leave such rows out: query = 'SELECT * FROM data WHERE "{column}" IS NOT NULL'"""


def refuse_rows(frame: pl.DataFrame, bad: pl.Series, what: str, hint: str, values: pl.Series | None = None) -> None:
    """Raise UserError where `bad` is true anywhere: it names the first such row, its user, its value and the count."""
    bad = bad.fill_null(True)
    if not bad.any():
        return
    first, total = int(bad.arg_true()[0]), int(bad.sum())
    who = f"; user {frame['user'][first]!r}" if "user" in frame.columns and frame["user"][first] is not None else ""
    value = "" if values is None else f" ({str(values[first])[:80]!r})"
    more = f"; {total:,} such rows in all" if total > 1 else ""
    raise UserError(f"row {frame['row'][first]} (counting from 0{who}) has {what}{value}{more}", hint)


def at_path(frame: pl.DataFrame, path: str) -> pl.Series:
    """Return the column at a path such as `annotations.user`: a field of a struct, or of each struct of a list.

    A column with that very name comes first. Raises UserError where there is none.
    """
    if path in frame.columns:
        return frame[path]
    name, *fields = path.split(".")
    known = [c for c in frame.columns if c != "row"]
    if name not in frame.columns:
        otherwise = f"the columns are {', '.join(known)}: name the one that holds it, for example user = {known[0]!r}"
        raise UserError(f"there is no column {name}", did_you_mean(name, known, otherwise))
    column, element = frame[name], pl.element()
    for field in fields:
        in_list = isinstance(column.dtype, pl.List)
        inner = column.dtype.inner if isinstance(column.dtype, pl.List) else column.dtype
        if not isinstance(inner, pl.Struct) or field not in (names := [f.name for f in inner.fields]):
            known = names if isinstance(inner, pl.Struct) else []
            raise UserError(
                f"column {name} has no field {field}", did_you_mean(field, known, f"it holds {column.dtype}")
            )
        column = column.list.eval(element.struct.field(field)) if in_list else column.struct.field(field)
    return column.alias(path)


def merged_columns(frame: pl.DataFrame, name: str, paths: Sequence[str]) -> pl.Series:
    """Return the columns at these paths as one column of lists: all responses to a prompt, or their ratings.

    One column that holds lists already is returned as it is.
    """
    columns = [at_path(frame, path) for path in paths]
    if len(columns) == 1 and isinstance(columns[0].dtype, pl.List | pl.Array) and not holds_messages(columns[0]):
        return columns[0].alias(name)
    texts = [text_of_messages(as_messages(column)) for column in columns]
    return pl.select(pl.concat_list(texts)).to_series().alias(name)
