"""Data frames of any library, as polars."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa

from harness.errors import UserError


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
