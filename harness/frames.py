"""Data frames of any library, as polars."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import polars as pl
import pyarrow as pa

from harness.errors import UserError


def read_table(path: Path) -> pl.DataFrame:
    """Read a csv, jsonl or parquet file. Every column of a csv file is text, so that ids stay as they are written.

    Raises UserError for a file that is missing, of another kind, or cannot be read.
    """
    readers: dict[str, Callable[[IO[bytes]], pl.DataFrame]] = {
        ".csv": lambda file: pl.read_csv(file, infer_schema=False),
        ".jsonl": lambda file: pl.read_ndjson(file, infer_schema_length=None),
        ".parquet": lambda file: pl.read_parquet(file),
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
        raise UserError(
            "the file is empty", "its first line must name the columns: user, prompt, chosen, rejected"
        ) from error
    except pl.exceptions.ComputeError as error:
        if "utf-8" in str(error).lower():
            raise UserError("the file is not UTF-8", "save it again with the encoding UTF-8") from error
        raise _unreadable(path, error) from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error
    if twice := [name for name in frame.columns if DUPLICATED.sub("", name) in set(frame.columns) - {name}]:
        name = DUPLICATED.sub("", twice[0])
        raise UserError(f"two columns are named {name}", "rename one of them, or remove it")
    return frame


DUPLICATED = re.compile(r"_duplicated_\d+$")  # how polars names the second of two columns of one name


def _unreadable(path: Path, error: Exception) -> UserError:
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


def as_polars(frame: Any) -> pl.DataFrame:
    """Return the frame as a polars DataFrame, without copying where that is possible.

    frame: a polars DataFrame or LazyFrame, a Hugging Face Dataset, a mapping of column names to lists, or anything that
    offers the Arrow C stream interface, as pandas, pyarrow and DuckDB do. Raises UserError for anything else.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if hasattr(frame, "__arrow_c_stream__"):
        found = pl.from_arrow(pa.RecordBatchReader.from_stream(frame).read_all())
        assert isinstance(found, pl.DataFrame)  # a table, not one column
        return found
    if hasattr(frame, "to_polars"):  # datasets.Dataset
        return frame.to_polars()
    if isinstance(frame, dict):
        try:
            return pl.DataFrame(frame)
        except pl.exceptions.ShapeError as error:
            raise UserError(f"the columns differ in length: {error}", "give every column one value per row") from error
    raise UserError(
        f"{type(frame).__name__} is not a data frame",
        "give a polars, pandas, pyarrow or Hugging Face table, or a dict of columns",
    )
