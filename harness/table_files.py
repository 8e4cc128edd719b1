"""Tables that people keep in files: csv, jsonl, parquet, arrow and folders of `datasets`, read without a guess."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.json

from harness.errors import UserError

KEEPS_NO_ORDER = re.compile(r"\b(group\s+by|distinct|join|union|except|intersect)\b", re.IGNORECASE)
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape of half a character, alone or in a pair
# Escapes of JSON, read from the left: a pair of halves, a lone half, any other, such as that of a backslash.
JSON_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def read_table(path: Path, split: str = "train") -> pl.DataFrame:
    """Read a csv, jsonl, parquet or arrow file, or a folder of `datasets.save_to_disk`.

    Every column of a csv file is text, so that ids stay as they are written.
    split: which table to read of a folder that holds several. Raises UserError for a file that is missing, of another
    kind, cannot be read, or could be read in two ways.
    """
    if path.is_dir():
        return _read_saved_folder(path, split)
    readers: dict[str, Callable[[IO[bytes]], pl.DataFrame]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": pl.read_parquet,
        ".arrow": _read_arrow,
        ".feather": _read_arrow,
    }
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{path.suffix or 'no suffix'} is no file type known here", f"give a file of type {', '.join(readers)}"
        )
    try:
        with path.open("rb") as file:  # of a path polars would take [1] for a pattern, and read another file
            frame = readers[path.suffix.lower()](file)
    except FileNotFoundError as error:
        raise UserError(
            "the file does not exist", "run from the folder that contains it, or give its full path"
        ) from error
    except pl.exceptions.NoDataError as error:
        raise UserError("the file is empty", "its first line must name the columns") from error
    except pl.exceptions.ComputeError as error:
        if "utf-8" in str(error).lower():
            raise _not_utf8() from error
        raise _unreadable(path, error) from error
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if twice := [name for name in frame.columns if DUPLICATED.sub("", name) in set(frame.columns) - {name}]:
        name = DUPLICATED.sub("", twice[0])
        raise UserError(f"two columns are named {name}", "rename one of them, or remove it")
    return frame


def filled_texts(table: pl.DataFrame, column: str, hint: str) -> list[str]:
    """Return a column's values as texts. Raises UserError where the table lacks the column, or a row has nothing in it."""
    if column not in table.columns:
        raise UserError(f"there is no column {column}; the columns are {', '.join(table.columns)}", hint)
    texts = table[column].cast(pl.String)
    if (empty := texts.is_null() | (texts.str.strip_chars() == "")).any():
        raise UserError(
            f"row {empty.arg_true()[0]} (counting from 0) of column {column} is empty", "fill it in or drop the row"
        )
    if not len(texts):
        raise UserError("the table has no rows", hint)
    return texts.to_list()


def files_of_table(path: Path) -> list[Path]:
    """Return the files that `read_table` reads: the file itself, or all files of a folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def query_table(table: pl.DataFrame, query: str) -> pl.DataFrame:
    """Return the result of an SQL query over `data`, as polars understands SQL. Raises UserError where it cannot run.

    Where the query says no order and what it does keeps none, such as GROUP BY, the rows are sorted, so that the same table
    gives the same rows in the same order.
    """
    try:
        with pl.SQLContext(data=table) as context:
            found = context.execute(query, eager=True)
    except Exception as error:  # of the parser, the planner, or a cast
        said = str(error).strip().splitlines()[0]
        raise UserError(
            f"the query failed: {said}",
            f"the table is called data; its columns are {', '.join(table.columns)}; a column whose name is a word of SQL, "
            'such as user, needs quotes: "user"',
        ) from error
    if KEEPS_NO_ORDER.search(query) and not re.search(r"\border\s+by\b", query, re.IGNORECASE):
        return found.sort([name for name, kind in found.schema.items() if not kind.is_nested()])
    return found


def _read_arrow(file: IO[bytes]) -> pl.DataFrame:
    """Read an arrow file of either kind: a file with an index, or a stream, as the library `datasets` writes."""
    try:
        return pl.read_ipc(file)
    except pl.exceptions.PolarsError:
        file.seek(0)
        return pl.read_ipc_stream(file)


def _read_saved_folder(path: Path, split: str) -> pl.DataFrame:
    """Read a folder that `datasets.save_to_disk` wrote. Raises UserError for any other folder, and an unknown split."""
    folder = path
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text("utf-8"))["splits"]
        if split not in splits:
            raise UserError(
                f"the folder has no split {split!r}, but {', '.join(splits)}", f'set hub_split = "{splits[0]}"'
            )
        folder = path / split
    if not (folder / "state.json").is_file():
        raise UserError("it is a folder, and not one of datasets.save_to_disk", "give the file inside it")
    try:
        parts = json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]
        tables = []
        for part in parts:
            with (folder / part["filename"]).open("rb") as file:
                tables.append(_read_arrow(file))
        return pl.concat(tables)
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise UserError(f"the folder cannot be read: {error}", "save the data set again") from error


def _read_csv(file: IO[bytes]) -> pl.DataFrame:
    """Read a csv file, each column as text. Raises UserError where polars would guess."""
    n_rows = check_csv(Path(file.name))
    frame = pl.read_csv(file, infer_schema=False)
    if len(frame) > n_rows:  # polars reads an empty line as a row without values
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    if len(frame) != n_rows:
        raise UserError(
            f"its lines end in several ways: {len(frame)} rows, or {n_rows}", "save it again with one kind of line ends"
        )
    return frame


def check_csv(path: Path) -> int:
    """Read a csv file by the strict rules of the format, and return its number of rows.

    Readers that are made for speed guess where a quote is not doubled, or a line has too few columns. Raises UserError for
    the first such line, and for a line that repeats the names of the columns, in any order, as joined files have it.
    """
    with path.open("rb") as raw:
        first = raw.readline()
    if first.startswith(b"\x1f\x8b"):
        raise UserError("it is compressed by gzip", "unpack it with gunzip")
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first:  # UTF-16, with its mark or without
        raise _not_utf8()
    if b"\r" in first.rstrip(b"\r\n"):
        raise UserError("its lines end in a carriage return alone", "save it again with line ends of Windows or Unix")
    longest, n_rows = csv.field_size_limit(sys.maxsize), 0
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            for row in rows:
                if not row:
                    continue  # an empty line
                n_rows += 1
                if row == names or (len(row) > 1 and set(map(_plain, row)) == set(map(_plain, names))):
                    raise UserError(
                        f"line {rows.line_num} repeats the names of the columns", "remove it, and join files without it"
                    )
                if len(row) != len(names):
                    raise _unreadable(path, f"line {rows.line_num} has {len(row)} columns, the first has {len(names)}")
    except csv.Error as error:
        raise UserError(
            f"line {rows.line_num}: {error}", 'write a quote inside quotes as two, "", not as a quote with a backslash'
        ) from error
    finally:
        csv.field_size_limit(longest)
    return n_rows


def _plain(name: str) -> str:
    """Return a column's name without what programs add: spaces, capitals, the mark of UTF-8."""
    return name.strip("\ufeff \t").casefold()


def _read_jsonl(file: IO[bytes]) -> pl.DataFrame:
    """Read a jsonl file. Raises UserError for a key that comes twice in a row, and for a column of numbers and texts.

    polars would keep the last of two keys, and make one text of 7 and "7".
    """
    content = file.read().removeprefix(b"\xef\xbb\xbf")  # the mark of UTF-8
    if content.lstrip()[:1] == b"[":
        raise UserError("it is one JSON array", "write one object a line, without brackets and commas between them")
    for row, line in enumerate(content.splitlines() if replace_half_characters(content) != content else ()):
        if replace_half_characters(line) != line:
            raise UserError(
                f"row {row} (counting from 0) holds half a character, so two different texts would be read as one",
                "write whole characters: a text was cut in the middle of one, such as an emoji",
            )
    options = pa.json.ReadOptions(block_size=min(len(content) + 1, 2**31 - 1))  # one block, so that rows are counted
    try:
        pa.json.read_json(pa.BufferReader(content), read_options=options)
    except pa.ArrowInvalid as error:
        found = re.search(r"Column\(/?(?P<column>.*?)\) (?P<what>changed from|was specified twice)", str(error))
        if found:
            said = str(error).removeprefix("JSON parse error: ").replace(f"Column(/{found['column']})", found["column"])
            raise UserError(
                f"column {said} (counting from 0)", "write every row with the same columns and types"
            ) from error
    return pl.read_ndjson(content, infer_schema_length=None)


def replace_half_characters(json_text: bytes) -> bytes:
    """Replace escapes of half a character (lone surrogates) in JSON by that of U+FFFD.

    Programs that cut a text in the middle of an emoji write them; they are not Unicode, and no table can hold them.
    """
    if not SURROGATE.search(json_text):
        return json_text
    return JSON_ESCAPE.sub(lambda found: b"\\ufffd" if found["half"] else found[0], json_text)


def _not_utf8() -> UserError:
    return UserError("the file is not UTF-8", "save it again with the encoding UTF-8")


DUPLICATED = re.compile(r"_duplicated_\d+$")  # how polars names the second of two columns of one name


def _unreadable(path: Path, error: Exception | str) -> UserError:
    """Return the error for a file that cannot be read; a csv file with another separator than commas is recognised."""
    with path.open("rb") as file:
        first = file.readline()
    for separator, name in ((b";", "semicolons"), (b"\t", "tabs")):
        if path.suffix.lower() == ".csv" and first.count(separator) > first.count(b","):
            return UserError(f"its columns are separated by {name}", "save it with commas between the columns")
    said = str(error).strip().splitlines()[0]
    return UserError(
        f"the file cannot be read: {said}", "check that it is complete, and that every line has all columns"
    )
