"""The cache of inference results: what an encoder, generator or judge computed for each text, by the text's digest.

    rows/<maker>/<shard>.json   a shard's manifest in the store; <maker> is the hash of the maker's identity
    rows.arrow                  column `id` and the results          } its files
    errors.arrow                columns `id` and `reason`            }

A block is the texts that a worker computes together, and a shard is the stored result of one block. A shard is
committed completely or not at all. Where two drivers computed the same row, the row committed first is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.store.store import Store, identity_hash

ID_TYPE = pa.binary(16)
# Samples of a prompt; tokens and probabilities are empty where a server does not return them.
SAMPLE_SCHEMA = pa.schema(
    [
        ("id", ID_TYPE),
        ("responses", pa.list_(pa.large_string())),
        ("finish_reason", pa.list_(pa.string())),
        ("n_tokens", pa.list_(pa.int32())),
        ("mean_logprob", pa.list_(pa.float32())),
        ("prompt_tokens", pa.int32()),
    ]
)
ERROR_SCHEMA = pa.schema([("id", ID_TYPE), ("reason", pa.large_string())])


def text_id(*parts: object) -> bytes:
    """Return 16 bytes of sha256 that identify a text, or several parts of one.

    The last bit is set, so that no id ends in a zero byte, which numpy would strip. None counts as the empty text.
    Different parts give different ids even where they contain the separator.
    """
    plain = ("" if part is None else str(part).replace("\x1e", "\x1e0").replace("\x1f", "\x1e1") for part in parts)
    digest = hashlib.sha256("\x1f".join(plain).encode("utf-8", "surrogatepass")).digest()
    return digest[:15] + bytes([digest[15] | 1])


def id_array(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return a column `id` as S16[n]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.empty(0, "S16")
    return np.frombuffer(array.buffers()[1], "S16", len(array), 16 * array.offset)


@dataclass(frozen=True)
class CachedRows:
    """The stored rows of one maker: an encoder, generator or judge with its options."""

    store: Store
    identity: Mapping[str, object] = field(hash=False)

    @cached_property
    def store_kind(self) -> str:
        """Kind under which the store holds the maker's shards, `rows/<maker>`."""
        return f"rows/{identity_hash(dict(self.identity))}"

    def block_facts(self) -> list[dict]:
        """Return the facts of every shard."""
        manifests = [
            self.store.read_manifest(self.store_kind, key) for key in sorted(self.store.committed_keys(self.store_kind))
        ]
        return [manifest["facts"] for manifest in manifests if manifest]

    def build_index(self) -> RowIndex:
        """Build the index of all committed rows; of rows with the same id, the first committed one is kept."""
        shards = []
        for key in self.store.committed_keys(self.store_kind):
            with contextlib.suppress(FileNotFoundError):
                shards.append((self.store.committed_at(self.store_kind, key), key))
        ids: list[np.ndarray] = [np.empty(0, "S16")]
        shard, row = [], []
        files: list[tuple[str, bool]] = []
        for _, key in sorted(shards):
            manifest = self.store.read_manifest(self.store_kind, key) or {"files": {}}
            for name in ("rows.arrow", "errors.arrow"):
                if name in manifest["files"]:
                    path = self.store.object_path(manifest, name)
                    found = id_array(_open_arrow_file(path)["id"]).copy()  # a copy, so that files do not stay mapped
                    ids.append(found)
                    shard.append(np.full(len(found), len(files), np.int32))
                    row.append(np.arange(len(found), dtype=np.int32))
                    files.append((str(path), name == "errors.arrow"))
        unique, first = np.unique(np.concatenate(ids), return_index=True)
        joined = [np.concatenate(c) if c else np.empty(0, np.int32) for c in (shard, row)]
        return RowIndex(unique, joined[0][first], joined[1][first], tuple(files))

    def commit(self, ids: np.ndarray, made: pa.Table, errors: pa.Table, facts: Mapping) -> None:
        """Commit the results of a block as one shard. ids: S16[n], the ids of the whole block."""
        files = {
            name: arrow_file_bytes(table)
            for name, table in (("rows.arrow", made), ("errors.arrow", errors))
            if len(table)
        }
        self.store.commit(self.store_kind, block_key(ids), dict(self.identity), files, facts)


@dataclass(frozen=True, eq=False)
class RowIndex:
    """An index of rows: sorted ids, and the file and row of each."""

    ids: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    files: tuple[tuple[str, bool], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_errors(self) -> bool:
        """Whether any indexed file holds errors."""
        return any(wrong for _, wrong in self.files)

    def is_missing(self, ids: np.ndarray) -> np.ndarray:
        """Return bool[n]: which ids have neither a row nor an error."""
        return find_places(self.ids, ids) < 0

    def parts_by_file(self, ids: np.ndarray) -> Iterable[tuple[np.ndarray, pa.Table, np.ndarray, bool]]:
        """Yield, for every file with some of the ids: places in `ids`, the table, its rows, whether they are errors."""
        at = find_places(self.ids, ids)
        shard = np.where(at < 0, -1, self.shard[at] if len(self.ids) else -1)
        for number in np.unique(shard[shard >= 0]):
            here = np.flatnonzero(shard == number)
            path, wrong = self.files[number]
            yield here, _open_arrow_file(path), self.row[at[here]], wrong

    def rows_table(self, ids: np.ndarray) -> pa.Table:
        """Return rows in the order of `ids`, without errors; the column `place` is each row's place in `ids`.

        Where all rows are errors, `place` is the only column.
        """
        parts = [
            table.take(pa.array(rows)).append_column("place", pa.array(here))
            for here, table, rows, wrong in self.parts_by_file(ids)
            if not wrong
        ]
        return pa.concat_tables(parts).sort_by("place") if parts else pa.table({"place": pa.array([], pa.int64())})

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Return float[n, d] from the column `vector`; rows with an error are NaN."""
        out = None
        for here, table, rows, wrong in self.parts_by_file(ids):
            if not wrong:
                values = table["vector"].chunk(0)
                matrix = values.flatten().to_numpy().reshape(len(values), -1)
                if out is None:
                    out = np.full((len(ids), matrix.shape[1]), np.nan, matrix.dtype)
                out[here] = matrix[rows]
        return np.empty((len(ids), 0), np.float32) if out is None else out

    def error_reasons(self, ids: np.ndarray) -> dict[int, str]:
        """Return place in `ids` -> reason for each row with an error."""
        found: dict[int, str] = {}
        for here, table, rows, wrong in self.parts_by_file(ids):
            if wrong:
                found |= dict(zip(here.tolist(), table["reason"].take(pa.array(rows)).to_pylist(), strict=True))
        return found


def find_places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return int64[n]: the place of each id in the sorted `known`, or -1 where absent."""
    if not len(known):
        return np.full(len(ids), -1)
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[at] == ids, at, -1)


def _open_arrow_file(path: str | os.PathLike) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def arrow_file_bytes(table: pa.Table) -> memoryview:
    """Return the table as an uncompressed Arrow file of one batch, which can be memory-mapped."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())


def block_key(ids: np.ndarray) -> str:
    """Return the key of a block: 16 hex digits of the sha256 of its ids."""
    return hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()[:16]


def error_table(ids: Iterable[bytes], reasons: Iterable[str]) -> pa.Table:
    """Return the error table of these rows, of ERROR_SCHEMA."""
    return pa.table([pa.array(list(ids), ID_TYPE), pa.array(list(reasons), pa.large_string())], schema=ERROR_SCHEMA)


def check_error_rate(index: RowIndex, ids: np.ndarray, rate: float, what: str) -> None:
    """Raise UserError where the share of errors among the rows is above `rate`."""
    reasons = index.error_reasons(ids)
    if len(reasons) > rate * len(ids):
        place, reason = next(iter(reasons.items()))
        raise UserError(
            f"{len(reasons)} of {len(ids)} {what} are errors, more than the {rate:.0%} allowed; row {place}: {reason}",
            "fix or remove those rows; finished rows are kept",
        )
