"""Tables that people keep in files: csv, jsonl and parquet, read without a guess."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.json

from harness.errors import UserError


def read_table(path: Path) -> pl.DataFrame:
    """Read a csv, jsonl or parquet file. Every column of a csv file is text, so that ids stay as they are written.

    Raises UserError for a file that is missing, of another kind, cannot be read, or could be read in two ways.
    """
    readers: dict[str, Callable[[IO[bytes]], pl.DataFrame]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": pl.read_parquet,
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
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    if twice := [name for name in frame.columns if DUPLICATED.sub("", name) in set(frame.columns) - {name}]:
        name = DUPLICATED.sub("", twice[0])
        raise UserError(f"two columns are named {name}", "rename one of them, or remove it")
    return frame


def _read_csv(file: IO[bytes]) -> pl.DataFrame:
    """Read a csv file, each column as text. Raises UserError where polars would guess."""
    n_rows = check_csv(Path(file.name))
    frame = pl.read_csv(file, infer_schema=False)
    if len(frame) != n_rows:
        raise UserError(
            f"its lines end in several ways: {len(frame)} rows, or {n_rows}", "save it again with one kind of line ends"
        )
    return frame


def check_csv(path: Path) -> int:
    """Read a csv file by the strict rules of the format, and return its number of rows.

    Readers that are made for speed guess where a quote is not doubled, or a line has too few columns. Raises UserError for
    the first such line, and for a line that repeats the names of the columns, as joined files have it.
    """
    with path.open("rb") as raw:
        first = raw.readline()
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):  # the mark of UTF-16
        raise _not_utf8()
    if b"\r" in first.rstrip(b"\r\n"):
        raise UserError("its lines end in a carriage return alone", "save it again with line ends of Windows or Unix")
    longest, n_rows = csv.field_size_limit(sys.maxsize), 0
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            for row in rows:
                n_rows += 1
                if row == names:
                    raise UserError(
                        f"line {rows.line_num} repeats the names of the columns", "remove it, and join files without it"
                    )
                if len(row) != len(names) and (row or len(names) > 1):
                    raise _unreadable(path, f"line {rows.line_num} has {len(row)} columns, the first has {len(names)}")
    except csv.Error as error:
        raise UserError(
            f"line {rows.line_num}: {error}", 'write a quote inside quotes as two, "", not as a quote with a backslash'
        ) from error
    finally:
        csv.field_size_limit(longest)
    return n_rows


def _read_jsonl(file: IO[bytes]) -> pl.DataFrame:
    """Read a jsonl file. Raises UserError for a key that comes twice in a row, and for a column of numbers and texts.

    polars would keep the last of two keys, and make one text of 7 and "7".
    """
    options = pa.json.ReadOptions(
        block_size=min(Path(file.name).stat().st_size + 1, 2**31 - 1)
    )  # one block: rows count
    try:
        pa.json.read_json(file, read_options=options)
    except pa.ArrowInvalid as error:
        found = re.search(r"Column\(/?(?P<column>.*?)\) (?P<what>changed from|was specified twice)", str(error))
        if found:
            said = str(error).removeprefix("JSON parse error: ").replace(f"Column(/{found['column']})", found["column"])
            raise UserError(
                f"column {said} (counting from 0)", "write every row with the same columns and types"
            ) from error
    file.seek(0)
    return pl.read_ndjson(file, infer_schema_length=None)


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
