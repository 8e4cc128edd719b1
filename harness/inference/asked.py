"""Numbers that a language model is asked for, one for each row: those in the store, and the job that makes the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.errors import UserError
from harness.inference.cache import ID_TYPE, CachedRows, RowIndex, check_error_rate, error_table, id_array
from harness.inference.jobs import Job, NotCachedError
from harness.store.store import Store

MAX_ASKED_ERROR_RATE = 0.05  # more rows without a number mean a problem with the questions or the model


@dataclass(frozen=True, eq=False)
class AskedRows:
    """Rows (a table with the column `id` and a recipe's inputs), and the job that makes a number for each.

    make_job: returns the job for batches of rows.  column: of the stored number, or of a vector, of which the number is at
    place `head`.  what: what the rows are, for messages.
    """

    table: pa.Table
    make_job: Callable[[Callable[[], Iterable[pa.Table]]], Job]
    column: str
    what: str
    store: Store
    head: int = 0

    @property
    def index(self) -> RowIndex:
        """The index of the stored rows, which is built again only after a block of rows is added."""
        rows = self.make_job(list).cached_rows(self.store)
        return _cached_index(rows, frozenset(self.store.committed_keys(rows.store_kind)))

    def missing(self) -> pa.Table:
        """Select the rows that the store lacks, each once, in their order.

        Keeping the order keeps rows with the same beginning together, and an engine reads that beginning once.
        """
        ids, first = np.unique(id_array(self.table["id"]), return_index=True)
        return self.table.take(pa.array(np.sort(first[self.index.is_missing(ids)])))

    def known(self) -> np.ndarray:
        """Return float64[n]: the stored numbers, NaN where there is none."""
        ids = id_array(self.table["id"])
        found, made = np.full(len(ids), np.nan), self.index.rows_table(ids)
        if len(made):
            column = made[self.column].combine_chunks()
            if pa.types.is_fixed_size_list(column.type):
                if self.head >= column.type.list_size:
                    raise UserError(
                        f"head = {self.head}, and the model has {column.type.list_size} heads", "head = 0 is the first"
                    )
                column = pc.list_element(column, self.head)
            found[made["place"].to_numpy()] = column.to_numpy()
        return found

    def stored(self) -> np.ndarray:
        """Return float64[n]: the stored numbers, NaN where the model gave none.

        Raises NotCachedError where some rows have not been asked yet, and UserError where more than MAX_ASKED_ERROR_RATE
        of them have no number.
        """
        if len(missing := self.missing()):
            raise NotCachedError(self.make_job(lambda: [missing]), len(missing))
        check_error_rate(self.index, id_array(self.table["id"]), MAX_ASKED_ERROR_RATE, self.what)
        return self.known()


def number_rows(ids: np.ndarray, found: np.ndarray, column: str) -> tuple[pa.Table, pa.Table]:
    """Return the columns id and `column` of the finite numbers, and an error table of the others."""
    good = np.isfinite(found)
    rows = pa.table({"id": pa.array(ids[good].tolist(), ID_TYPE), column: pa.array(found[good])})
    return rows, error_table(ids[~good].tolist(), [f"{column.replace('_', ' ')}: not finite"] * int((~good).sum()))


@lru_cache(4)  # a trial reads the index a dozen times
def _cached_index(rows: CachedRows, block_keys: frozenset[str]) -> RowIndex:
    """Build the index. `block_keys`, the keys of the blocks, are not read: a new block makes a new cache entry."""
    return rows.build_index()
