"""Rows of people's tables: ids of users, judged pairs and texts are checked, and the first row that is wrong is named."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from harness.errors import UserError
from harness.sameness import same_writing

ID_TYPES = (str, int, np.integer, uuid.UUID)
DECIMAL_ENDING = re.compile(r"(?<=\d)\.0+$")  # 2.0 for 2: what is left where ids were numbers in between
AS_TEXT = 'read the ids as text, for example pl.read_csv(file, schema_overrides={"user": pl.String})'


def user_numbers(user: Any) -> tuple[list[str], np.ndarray]:
    """Return the distinct ids of users as text, in order, and int64[n], each row's number among them.

    user: one id per row, as a list, array or polars Series of texts or whole numbers. Whole numbers are in numeric order.

    Ids are names: two different ones never become one user. Raises UserError for a row without an id, for numbers with
    decimals and mixed types, which may have been merged by whatever read them, and for two ids that look the same.
    """
    if not isinstance(user, pl.Series):
        user = np.asarray(user) if isinstance(user, np.ndarray) else _column_of_objects(user)
        if user.ndim != 1:
            raise UserError(f"column user has shape {user.shape}", "give one id of a user for each judged pair")
        raise_for_first_bad(_without_id(user), "no user", user, "drop the rows whose user is unknown")
        user = _series_of_ids(user)
    raise_for_first_bad(user.is_null().to_numpy(), "no user", user, "drop the rows whose user is unknown")
    if isinstance(user.dtype, pl.Categorical | pl.Enum):
        user = user.cast(pl.String)
    if user.dtype != pl.String and not user.dtype.is_integer():
        raise _no_ids(user.dtype)
    if user.dtype == pl.String:
        blank = (user.str.strip_chars() == "").to_numpy()
        raise_for_first_bad(blank, "no user", user, "drop the rows whose user is unknown")
    distinct = user.unique().sort()
    number = user.to_frame("id").join(
        distinct.to_frame("id").with_row_index("number"), on="id", how="left", maintain_order="left"
    )["number"]
    names = distinct.cast(pl.String).to_list()
    _check_different_people(names)
    return names, number.to_numpy().astype(np.int64)


def _column_of_objects(values: Any) -> np.ndarray:
    """Return the values as object[n], each as it is: numpy would turn 1 and "1" into one."""
    values = list(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _without_id(user: np.ndarray) -> np.ndarray:
    return np.array([u is None or u != u for u in user], dtype=bool) if user.dtype == object else user != user


def _series_of_ids(user: np.ndarray) -> pl.Series:
    """Return ids as a Series of texts or whole numbers. Raises UserError for ids of other or of mixed types."""
    if user.dtype.kind in "iuU":
        return pl.Series(user.astype(object) if user.dtype.kind == "U" else user)
    if user.dtype != object:
        raise _no_ids(user.dtype)
    kinds = [next((kind for kind in ID_TYPES if isinstance(u, kind)), None) for u in user]
    kinds = [int if kind is np.integer else kind for kind in kinds]
    first = kinds[0] if kinds else str
    wrong = np.array(
        [kind is None or kind is not first or isinstance(u, bool) for kind, u in zip(kinds, user, strict=True)]
    )
    raise_for_first_bad(wrong, "an id that is neither text nor a whole number like the first one", user, AS_TEXT)
    if first is int and all(-(2**63) <= u < 2**63 for u in user):
        return pl.Series([int(u) for u in user], dtype=pl.Int64)
    return pl.Series([str(u) for u in user], dtype=pl.String)


def _no_ids(dtype: object) -> UserError:
    why = "; two ids may have become one number" if "float" in str(dtype).lower() else ""
    return UserError(f"column user holds {dtype}, not names or whole numbers{why}", AS_TEXT)


def _check_different_people(names: list[str]) -> None:
    """Raise UserError where two ids differ only in spaces, invisible characters, the Unicode form of a letter, or in `.0`."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(DECIMAL_ENDING.sub("", same_writing(name)), name)
        if other is not name:
            raise UserError(
                f"users {other!r} and {name!r} look the same: one person's id written in two ways would count as two people",
                "write each person's id in one way; where they are two people, rename one",
            )


def check_columns(columns: Mapping[str, np.ndarray], rows: int) -> None:
    """Raise UserError where a column of judged pairs has another length than `rows`, or is not numeric."""
    if not rows:
        raise UserError("there are no judged pairs", "give at least two pairs for each user")
    for name, values in columns.items():
        if values.shape != (rows,):
            raise UserError(
                f"column {name} has shape {values.shape}, but column user has shape {(rows,)}",
                "give every column one value for each judged pair, and give at least two pairs",
            )
        check_numeric(name, values)


def check_numeric(name: str, values: np.ndarray) -> None:
    """Raise UserError where a column is not numeric."""
    if values.dtype.kind not in "biuf":
        example = f", for example {values[0]!r}" if len(values) else ""
        raise UserError(f"column {name} holds {values.dtype}, not numbers{example}", f"convert {name} to numbers")


def check_pairs(columns: Mapping[str, np.ndarray], n_items: int) -> None:
    """Raise UserError for the first row with an impossible label, item or response time."""
    left, right = columns["left"], columns["right"]
    check_labels(columns["label"], "left")
    raise_for_first_bad(
        left == right, "a pair of one item with itself", left, "drop the rows whose two options are the same"
    )
    for side in (left, right):
        exists = (side >= 0) & (side < n_items) & (side == np.floor(side))
        raise_for_first_bad(~exists, "an item that does not exist", side, f"items are numbered 0..{n_items - 1}")
    if "seconds" in columns:
        seconds = columns["seconds"]
        possible = (seconds >= 0) & (seconds < np.inf)
        raise_for_first_bad(~possible, "an impossible response time", seconds, "drop the row, or leave out seconds")


def check_labels(label: np.ndarray, preferred: str) -> None:
    """Raise UserError for the first label that is not a share between 0 and 1."""
    hint = f"labels are P({preferred} preferred): use 1, 0 or a number between"
    raise_for_first_bad(~((label >= 0) & (label <= 1)), "a label outside [0, 1]", label, hint)


def raise_for_first_bad(bad: np.ndarray, what: str, values: Any, hint: str, where: str = "row") -> None:
    """Raise UserError where `bad`, bool[n], is true anywhere: it names the first place, its value and the count."""
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        total = int(bad.sum())
        more = f"; {total} such {where}s in all" if total > 1 else ""
        raise UserError(f"{where} {first} (counting from 0) has {what} ({values[first]}){more}", hint)


def require_columns(frame: pl.DataFrame, *names: str) -> None:
    """Raise UserError where a data frame lacks one of the columns."""
    if missing := [name for name in names if name not in frame.columns]:
        raise UserError(
            f"the data frame has no column {', '.join(missing)}; its columns are {', '.join(frame.columns)}",
            f'rename one of them first, for example frame.rename({{"annotator_id": "{missing[0]}"}})',
        )


def with_numbers(frame: pl.DataFrame, *names: str, known_as: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Return the frame with the named columns, where it has them, as numbers. Raises UserError for the first that is none.

    known_as: names of columns in the person's own table, for the message, where they are others.
    """
    for name in names:
        known = (known_as or {}).get(name, name)
        if name in frame.columns and frame[name].dtype == pl.String:
            number = frame[name].str.strip_chars().cast(pl.Float64, strict=False)
            raise_for_first_bad(
                number.is_null().to_numpy(), f"no number in column {known}", frame[name], f"convert {known} to numbers"
            )
            frame = frame.with_columns(number)
        elif name in frame.columns and frame[name].dtype.is_decimal():  # 0.5 in SQL
            frame = frame.with_columns(pl.col(name).cast(pl.Float64))
    return frame


def text_columns(frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    """Return the named columns. Raises UserError where one holds no text or has a row without a value."""
    for name in names:
        column = frame[name]
        if isinstance(column.dtype, pl.Categorical | pl.Enum):
            frame = frame.with_columns(pl.col(name).cast(pl.String))
        elif column.dtype not in (pl.String, pl.Null):
            hint = "turn each list of messages into one string" if column.dtype.is_nested() else f"read {name} as text"
            raise UserError(f"column {name} holds {column.dtype}, not text", hint)
        hint = "fill in the text, or drop such rows"
        raise_for_first_bad(column.is_null().to_numpy(), f"no text in column {name}", column, hint)
    return frame.select(names)


def sides_of_choices(frame: pl.DataFrame, numbers: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the chosen and the rejected option of each row: columns prompt and response, and the numbers of both.

    numbers: names of numbers, which are columns chosen_NAME and rejected_NAME; with some, texts may be missing. Raises
    UserError for a missing column, and for the first row without a text or with equal options.
    """
    require_columns(frame, "user", *(f"{side}_{name}" for side in ("chosen", "rejected") for name in numbers))
    if has_texts := not numbers or "chosen" in frame.columns or "rejected" in frame.columns:
        require_columns(frame, "prompt", "chosen", "rejected")
        texts = text_columns(frame, "prompt", "chosen", "rejected")
        check_options_differ(texts, "chosen", "rejected")
    sides = []
    for side in ("chosen", "rejected"):
        columns = [texts["prompt"], texts[side].alias("response")] if has_texts else []
        found = with_numbers(frame, *(f"{side}_{name}" for name in numbers))
        columns += [found[f"{side}_{name}"].alias(name) for name in numbers]
        sides.append(pl.DataFrame(columns))
    if not has_texts:
        equal = pl.Series((sides[0].to_numpy() == sides[1].to_numpy()).all(axis=1))
        what, hint = "a chosen option that equals the rejected one", "drop the rows whose two options are the same"
        raise_for_first_bad(equal.to_numpy(), what, frame["user"], hint)
    return sides[0], sides[1]


def check_options_differ(texts: pl.DataFrame, left: str, right: str) -> None:
    """Raise UserError for the first row whose two options look the same to a person."""
    what = f"the same text in {left} and {right}"
    same = options_look_same(texts[left], texts[right]).to_numpy()
    raise_for_first_bad(same, what, texts[left], "drop the rows whose two options look the same")


def options_look_same(left: pl.Series, right: pl.Series) -> pl.Series:
    """Return for each row whether two texts look the same to a person, as `sameness.same_writing` says.

    Only texts with the same visible ASCII characters can look the same, or texts with other characters, whose Unicode
    form matters: only those are compared one by one.
    """
    equal = left == right
    visible = [text.str.replace_all(r"\s+", "") for text in (left, right)]
    near = ~equal & (
        (visible[0] == visible[1]) | left.str.contains(r"[^\x00-\x7f]") | right.str.contains(r"[^\x00-\x7f]")
    )
    rows = near.arg_true()
    same = [same_writing(a) == same_writing(b) for a, b in zip(left[rows], right[rows], strict=True)]
    return equal.scatter(rows.filter(pl.Series(same, dtype=pl.Boolean)), True) if any(same) else equal
