"""Tasks from a table: of a file, or of a data set of the Hugging Face hub, after an SQL query."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from harness.data import TEXT_SCHEMA
from harness.errors import UserError, error_prefix
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.sources.crowd import crowd_dim
from harness.sources.hub import load_hub_table, parse_hub_name
from harness.sources.public_files import files_content_digest
from harness.store.store import Store
from harness.table_files import files_of_table, query_table, read_table
from harness.task import TextTask


@dataclass(frozen=True)
class TableTask(TextTask):
    """A task whose judgements are rows of a table, which a suite describes by these fields: no code is needed.

    The table is a csv, jsonl, parquet or arrow file, a folder of `datasets.save_to_disk`, or a data set of the hub.
    `query` is SQL (of polars) over the table `data`, for tables that need more than other names of columns; the other
    fields then name columns of its result. A column may be a path, such as `annotations.worker`.
    """

    file: str = field(default="", metadata={"identity": False})  # `files_digest` identifies its content
    hub: str = ""  # "org/name@REVISION", read with the library `datasets`; no code of the repository runs
    config: str = ""  # of a data set of the hub that has several
    hub_split: str = "train"  # of a data set of the hub, or of a folder that holds several
    first_rows: int = 0  # read only that many rows, streamed from the hub; 0 for all
    query: str = ""  # SQL over `data`, for example "SELECT *, winner - 1 AS winner FROM data"
    user: str = "user"  # column with the person's id
    prompt: str = "prompt"  # column with what people were asked, if there is one
    encoder: str = encoder_field("hashing-256")  # of the texts; not used where the table has numbers of its own

    takes_crowd_vectors: ClassVar[bool] = False  # also takes encoder = "raters-DIM", which learns from training people

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.takes_crowd_vectors and crowd_dim(self.encoder)):
            check_encoder(self.encoder)
        if "@" in self.hub:
            parse_hub_name(self.hub)
        if self.first_rows < 0:
            raise UserError(f"{self.name}: first_rows = {self.first_rows} is below 0", "leave it out to read all rows")

    @property
    def source(self) -> str:
        """Where the table is from: the file, or the name on the hub."""
        return self.file or self.hub

    def files_digest(self) -> str:
        # on the hub, the revision identifies the content
        return files_content_digest(*files_of_table(Path(self.file))) if self.file else ""

    def sql(self) -> str:
        """Return the query; presets whose query depends on a field fill it in here."""
        return self.query

    def read(self) -> pl.DataFrame:
        """Return the table with the judgements, after the query, with a column `row`. Raises UserError without one."""
        if not self.source:
            raise UserError(
                f"{self.name}: neither file nor hub is given",
                f'in a suite, write [[tasks]] with name = "{self.name}" and file = "table.csv"',
            )
        if self.file:
            with error_prefix(self.file):
                table = read_table(Path(self.file), self.hub_split)
                table = table.head(self.first_rows) if self.first_rows else table
        else:
            table = load_hub_table(self.hub, self.config, self.hub_split, self.first_rows)
        with error_prefix(self.source):
            table = query_table(table, self.sql()) if self.query else table
            if table.is_empty():
                raise UserError("the table has no rows", "check the file, and the query if there is one")
            return table if "row" in table.columns else table.with_row_index("row")

    def judgements(self, table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
        """Return a row per judgement, and notes on what was left out, from the table that `read` returns."""
        raise NotImplementedError

    def encoded(self, text: pl.DataFrame, store: Store | None) -> np.ndarray:
        """Return float32[n, dim]: vectors of texts (columns prompt and response) from the task's encoder."""
        return encode_items(text.to_arrow().cast(TEXT_SCHEMA), self.encoder, store)
