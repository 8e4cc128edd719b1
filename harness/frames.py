"""Data frames of any library, as polars."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from harness.errors import UserError


def as_polars(frame: Any) -> pl.DataFrame:
    """Return the frame as a polars DataFrame, without copying where that is possible.

    frame: a polars DataFrame or LazyFrame, a Hugging Face Dataset, a mapping of column names to lists, or anything that
    offers the Arrow C stream interface, as pandas, pyarrow and DuckDB do. Raises UserError for anything else, and for a
    table that its library cannot hand over.
    """
    try:
        return _converted(frame)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:  # Arrow's errors are of the first two
        raise UserError(
            f"the {type(frame).__name__} cannot be read as one table: {str(error).strip().splitlines()[0]}",
            "give every column a name of its own, one value per row, and values of one type",
        ) from error


def _converted(frame: Any) -> pl.DataFrame:
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
        if parts := [name for name, part in frame.items() if hasattr(part, "column_names")]:  # datasets.DatasetDict
            raise UserError(f"there are several tables: {', '.join(parts)}", f"give one of them: data[{parts[0]!r}]")
        return pl.DataFrame(frame)
    raise UserError(
        f"{type(frame).__name__} is not a data frame",
        "give a polars, pandas, pyarrow or Hugging Face table, or a dict of columns",
    )
