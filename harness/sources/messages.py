"""Chat messages as plain text, by the same rule for both sides of a pair: the form never tells which side won."""

from __future__ import annotations

import re

import polars as pl

from harness.errors import UserError

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
# Turns of one text, as `Anthropic/hh-rlhf` writes a conversation: the response follows the last assistant's mark.
TURN_MARK = re.compile(r"\n\nAssistant:\s*")


def holds_messages(column: pl.Series) -> bool:
    """Return whether a column holds lists of messages: structs with `role` and `content`."""
    return isinstance(column.dtype, pl.List) and _is_message(column.dtype.inner)


def _is_message(dtype: object) -> bool:
    return isinstance(dtype, pl.Struct) and {"role", "content"} <= {field.name for field in dtype.fields}


def as_messages(column: pl.Series) -> pl.Series:
    """Return a column of JSON texts of messages, or of single messages, as lists of messages; any other as it is.

    A csv file can hold messages only as JSON.
    """
    if _is_message(column.dtype):
        return column.to_frame().select(pl.concat_list(pl.col(column.name))).to_series()
    if column.dtype != pl.String or not len(column) or not column.str.contains(r'^\s*\[\s*\{\s*"').all():
        return column
    try:
        return column.str.json_decode(MESSAGES)
    except pl.exceptions.PolarsError:
        return column


def text_of_messages(column: pl.Series) -> pl.Series:
    """Return the text of each list of messages: of one message its content, of several every turn with its role.

    Raises UserError where a message's content is not text. Columns of other types are returned as they are.
    """
    if not holds_messages(column):
        return column
    turn, messages = pl.element().struct, pl.col(column.name)
    content = column.explode().struct.field("content").dtype
    if content not in (pl.String, pl.Null):
        raise UserError(
            f"column {column.name}: the content of its messages is {content}, not text",
            "keep the parts of messages that are text, as one string",
        )
    turns = messages.list.eval(turn.field("role").str.to_titlecase() + ": " + turn.field("content").cast(pl.String))
    first = messages.list.first().struct.field("content").cast(pl.String)
    missing = messages.list.eval(turn.field("content").is_null() | turn.field("role").is_null()).list.any()
    text = pl.when(messages.list.len() == 1).then(first).otherwise(turns.list.join("\n\n"))
    return (
        column.to_frame().select(pl.when(missing | (messages.list.len() == 0)).then(None).otherwise(text)).to_series()
    )


def split_shared_messages(chosen: pl.Series, rejected: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Return prompt, chosen and rejected of conversations that begin with the same messages: an implicit prompt.

    The prompt holds all messages that both sides share, but never the last message of a side.
    """
    pairs = zip(chosen.to_list(), rejected.to_list(), strict=True)
    shared = [_shared_length(a or [], b or []) for a, b in pairs]
    frame = pl.DataFrame({"chosen": chosen, "rejected": rejected, "shared": pl.Series(shared, dtype=pl.UInt32)})
    cut = frame.select(
        prompt=pl.col("chosen").list.head(pl.col("shared")),
        chosen=pl.col("chosen").list.slice(pl.col("shared")),
        rejected=pl.col("rejected").list.slice(pl.col("shared")),
    )
    return cut["prompt"], cut["chosen"], cut["rejected"]


def _shared_length(a: list, b: list) -> int:
    longest = max(0, min(len(a), len(b)) - 1)
    return next((i for i in range(longest) if a[i] != b[i]), longest)


def _shared_beginning(a: str, b: str) -> str:
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def split_marked_text(chosen: pl.Series, rejected: pl.Series) -> tuple[pl.Series, pl.Series, pl.Series] | None:
    """Return prompt, chosen and rejected of texts that hold a whole conversation; None where no text has turns marked.

    The prompt ends with the last mark of an assistant's turn that both sides share. Raises UserError for the first row
    that has no such mark where others have.
    """
    found: list[tuple[str, str, str] | None] = []
    for a, b in zip(chosen.to_list(), rejected.to_list(), strict=True):
        marks = list(TURN_MARK.finditer(_shared_beginning(a or "", b or "")))
        found.append((a[: marks[-1].start()], a[marks[-1].end() :], b[marks[-1].end() :]) if marks else None)
    if not any(found):
        return None
    if None in found:
        raise UserError(
            f"row {found.index(None)} (counting from 0): the two texts share no turn marked 'Assistant:', but other rows do",
            "name the column of the prompt, or write the prompt into a column of its own",
        )
    prompt, a, b = zip(*(row for row in found if row), strict=True)
    return pl.Series("prompt", prompt), pl.Series(chosen.name, a), pl.Series(rejected.name, b)
