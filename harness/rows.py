"""What an encoder, a generator or a judge made of each text: made once, found again by the text's digest.

    rows/<maker>/<shard>.json   a shard's manifest in the store; <maker> is the hash of the maker's identity
    rows.arrow                  column `id` and what was made        } its files
    errors.arrow                columns `id` and `reason`            }

A shard is a block of texts that one worker did at a time, committed whole or not at all. Where two drivers made the same
row, the one committed first is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from harness.errors import Missing, Mistake
from harness.store import provenance
from harness.store.store import Store, hashed

ID = pa.binary(16)
ERRORS = pa.schema([("id", ID), ("reason", pa.large_string())])
TRIES = 2  # of a block, or a row, whose worker died: then the block is done row by row, and the row is an error


Worker = Callable[
    [pa.Table], tuple[pa.Table, pa.Table, dict]
]  # prepared inputs -> rows, ERRORS, counts kept as facts of the block


class Recipe(Protocol):
    """How rows are made; picklable, so that it can travel to where a GPU is."""

    block: int  # rows that one worker does at a time and a kill may cost
    cpus: int  # that one worker uses, where it needs no GPU; 0: a GPU, or all of a machine's cores

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Whatever needs no model, such as tokens: inputs ready for the worker, and ERRORS. Keeps `id`."""

    def start(self) -> Worker:
        """Loads the model."""

    def check(self) -> None:
        """Raises Mistake where it is known before any worker starts that it cannot run here; fetches the model."""


@dataclass(frozen=True, eq=False)
class Job:
    """Rows that someone needs: who makes them, how, and of what.

    what: `vectors`, `samples` or `answers`, for messages.  batches: gives tables with `id` and the recipe's inputs.
    """

    what: str
    identity: dict[str, object]
    recipe: Recipe
    batches: Callable[[], Iterable[pa.Table]]

    def rows(self, store: Store) -> Rows:
        return Rows(store, self.identity)


class Lacking(Missing):
    """Rows are needed that nobody has made yet; `job` makes them."""

    def __init__(self, job: Job, count: int) -> None:
        verb = {"vectors": "encode", "samples": "generate"}.get(job.what)
        super().__init__(
            f"{count} {job.what} by {job.identity.get('model', 'this maker')} are not made yet",
            "manyminds run SUITE makes them" + (f", and so does manyminds {verb} SUITE" if verb else ""),
        )
        self.job, self.count = job, count

    def __reduce__(self):
        return type(self), (self.job, self.count)


def merged(jobs: Iterable[Job]) -> list[Job]:
    """One job per maker, so that each model is loaded once."""
    by_maker: dict[str, list[Job]] = {}
    for job in jobs:
        by_maker.setdefault(hashed(dict(job.identity)), []).append(job)
    return [
        replace(same[0], batches=lambda same=same: chain.from_iterable(job.batches() for job in same))
        for same in by_maker.values()
    ]


def text_id(*parts: object) -> bytes:
    """16 bytes that name a text (or several parts of one): of its sha256, the last bit set, as numpy cuts zeros off.

    None counts as the empty text. Parts are told apart even where they hold the separator.
    """
    plain = ("" if part is None else str(part).replace("\x1e", "\x1e0").replace("\x1f", "\x1e1") for part in parts)
    digest = hashlib.sha256("\x1f".join(plain).encode("utf-8", "surrogatepass")).digest()
    return digest[:15] + bytes([digest[15] | 1])


def ids_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """S16[n] of a column `id`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.empty(0, "S16")
    return np.frombuffer(array.buffers()[1], "S16", len(array), 16 * array.offset)


@dataclass(frozen=True)
class Rows:
    """All rows of one maker."""

    store: Store
    identity: Mapping[str, object] = field(hash=False)

    @cached_property
    def kind(self) -> str:
        return f"rows/{hashed(dict(self.identity))}"

    def facts(self) -> list[dict]:
        """Of every committed block."""
        manifests = [self.store.read(self.kind, key) for key in sorted(self.store.keys(self.kind))]
        return [manifest["facts"] for manifest in manifests if manifest]

    def index(self) -> Index:
        """Where every committed row lies, first commits first."""
        folder = self.store.root / self.kind
        shards = []
        for key in self.store.keys(self.kind):
            with contextlib.suppress(FileNotFoundError):
                shards.append(((folder / f"{key}.json").stat().st_mtime_ns, key))
        ids, shard, row, files = [np.empty(0, "S16")], [], [], []
        for _, key in sorted(shards):
            manifest = self.store.read(self.kind, key)
            for name in ("rows.arrow", "errors.arrow") if manifest else ():
                if name in manifest["files"]:
                    path = self.store.file(manifest, name)
                    found = ids_of(_open(path)["id"]).copy()  # else every file stays mapped
                    ids.append(found)
                    shard.append(np.full(len(found), len(files), np.int32))
                    row.append(np.arange(len(found), dtype=np.int32))
                    files.append((str(path), name == "errors.arrow"))
        unique, first = np.unique(np.concatenate(ids), return_index=True)
        joined = [np.concatenate(c) if c else np.empty(0, np.int32) for c in (shard, row)]
        return Index(unique, joined[0][first], joined[1][first], tuple(files))

    def commit(self, ids: np.ndarray, made: pa.Table, errors: pa.Table, facts: Mapping) -> None:
        """Makes a block visible, whole. ids: S16[n] of the whole block."""
        with self.store.explained():
            (self.store.root / self.kind).mkdir(parents=True, exist_ok=True)
        files = {
            name: plain_ipc(table) for name, table in (("rows.arrow", made), ("errors.arrow", errors)) if len(table)
        }
        self.store.commit(self.kind, block_key(ids), dict(self.identity), files, facts)


@dataclass(frozen=True, eq=False)
class Index:
    """Sorted ids, and the file and row of each."""

    ids: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    files: tuple[tuple[str, bool], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_errors(self) -> bool:
        return any(wrong for _, wrong in self.files)

    def lacks(self, ids: np.ndarray) -> np.ndarray:
        """bool[n]: which of these have neither a row nor an error."""
        return places(self.ids, ids) < 0

    def each(self, ids: np.ndarray) -> Iterable[tuple[np.ndarray, pa.Table, np.ndarray, bool]]:
        """For every file that holds some of them: places in `ids`, the file's table, rows of it, whether these are errors."""
        at = places(self.ids, ids)
        shard = np.where(at < 0, -1, self.shard[at] if len(self.ids) else -1)
        for number in np.unique(shard[shard >= 0]):
            here = np.flatnonzero(shard == number)
            path, wrong = self.files[number]
            yield here, _open(path), self.row[at[here]], wrong

    def table(self, ids: np.ndarray) -> pa.Table:
        """Rows in the order of `ids`, those with an error left out; the column `place` says where in `ids` each was.

        Where all are errors there is no column but `place`.
        """
        parts = [
            table.take(pa.array(rows)).append_column("place", pa.array(here))
            for here, table, rows, wrong in self.each(ids)
            if not wrong
        ]
        return pa.concat_tables(parts).sort_by("place") if parts else pa.table({"place": pa.array([], pa.int64())})

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """float[n, d] of the column `vector`; rows with an error are NaN."""
        out = None
        for here, table, rows, wrong in self.each(ids):
            if not wrong:
                values = table["vector"].chunk(0)
                matrix = values.flatten().to_numpy().reshape(len(values), -1)
                if out is None:
                    out = np.full((len(ids), matrix.shape[1]), np.nan, matrix.dtype)
                out[here] = matrix[rows]
        return np.empty((len(ids), 0), np.float32) if out is None else out

    def reasons(self, ids: np.ndarray) -> dict[int, str]:
        """Place in `ids` -> why there is no row."""
        found = {}
        for here, table, rows, wrong in self.each(ids):
            if wrong:
                found |= dict(zip(here.tolist(), table["reason"].take(pa.array(rows)).to_pylist(), strict=True))
        return found


def places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """int64[n]: where each id lies among those known, which are sorted; -1 where it does not."""
    if not len(known):
        return np.full(len(ids), -1)
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[at] == ids, at, -1)


def _open(path: str | os.PathLike) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def plain_ipc(table: pa.Table) -> memoryview:
    """The table as an uncompressed Arrow file of one batch, which can be memory-mapped."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())


def block_key(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()[:16]


def errors(ids: Iterable[bytes], reasons: Iterable[str]) -> pa.Table:
    """ERRORS of these rows."""
    return pa.table([pa.array(list(ids), ID), pa.array(list(reasons), pa.large_string())], schema=ERRORS)


def distinct(batches: Iterable[pa.Table], index: Index, block: int) -> Iterator[pa.Table]:
    """The rows that are not made yet, each id once, in blocks of at most `block` rows. Ids alone are kept in memory."""
    runs: list[np.ndarray] = []  # of sorted ids seen, each at least twice as long as the next: few, and cheap to keep
    waiting: list[pa.Table] = []
    for batch in batches:
        ids = ids_of(batch["id"])
        new = np.zeros(len(ids), dtype=bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for known in (index.ids, *runs):
            new &= places(known, ids) < 0
        runs.append(np.sort(ids[new]))
        while len(runs) > 1 and len(runs[-2]) < 2 * len(runs[-1]):
            runs[-2:] = [np.sort(np.concatenate(runs[-2:]), kind="stable")]
        waiting.append(batch.filter(pa.array(new)))
        while sum(map(len, waiting)) >= block:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, block)
            waiting = [joined.slice(block)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


@dataclass(frozen=True)
class Waiting:
    """The blocks to make, a record batch each of one file in the store, and their numbers of rows: texts of any amount
    wait there, outside memory."""

    file: Path
    sizes: tuple[int, ...]

    def block(self, number: int) -> pa.Table:
        os.utime(self.file)  # it is in use, however long the job takes: see store.STALE
        return pa.Table.from_batches([pa.ipc.open_file(pa.memory_map(str(self.file))).get_batch(number)])


@contextlib.contextmanager
def waiting(rows: Rows, batches: Iterable[pa.Table], block: int) -> Iterator[Waiting]:
    """What is not made yet. The file is gone afterwards."""
    file = rows.store.root / "tmp" / f"waiting-{os.uname().nodename}-{os.getpid()}-{time.time_ns()}.arrow"
    try:
        sizes = []
        with rows.store.explained(), contextlib.ExitStack() as stack:
            for table in distinct(batches, rows.index(), block):
                if not sizes:
                    writer = stack.enter_context(pa.ipc.new_file(str(file), table.schema))
                writer.write_table(table.combine_chunks(), max_chunksize=len(table))
                sizes.append(len(table))
        yield Waiting(file, tuple(sizes))
    finally:
        file.unlink(missing_ok=True)


def make_block(rows: Rows, prepared: pa.Table, early: pa.Table, worker: Worker, run: str = "") -> int:
    """Does one block and commits it; returns the number of its errors.

    early: errors found while preparing. run: names this run of a driver, whose end is no death of its workers: they do
    not count what an earlier one left. A block at which a worker died twice is done row by row, each with a mark of its
    own, so that the row at which a worker dies alone becomes an error.
    """
    ids = np.concatenate([ids_of(prepared["id"]), ids_of(early["id"])])
    key = block_key(ids)
    if there := rows.store.read(rows.kind, key):
        return there["facts"]["errors"]
    began, made, wrong, facts = time.perf_counter(), [], [early], Counter()

    def make(part: pa.Table) -> None:
        done, bad, more = worker(part)
        made.append(done)
        wrong.append(bad)
        facts.update(more)

    with mark(rows.store, run + key) as tries:
        if tries <= TRIES and len(prepared):
            make(prepared)
        elif len(prepared):
            for place, one in enumerate(ids_of(prepared["id"])):
                with mark(rows.store, f"{run}{key}-{one.hex()}") as tried:
                    if tried <= TRIES:
                        make(prepared.slice(place, 1))
                    else:
                        wrong.append(errors([one], ["its worker died or hung at this row alone"]))
        good = pa.concat_tables(made) if made else pa.table({"id": pa.array([], ID)})
        bad = pa.concat_tables([table.cast(ERRORS) for table in wrong])
        counted = {"rows": len(good), "errors": len(bad), "seconds": time.perf_counter() - began}
        rows.commit(ids, good, bad, dict(facts) | counted | provenance.facts())
    return len(bad)


@contextlib.contextmanager
def mark(store: Store, name: str) -> Iterator[int]:
    """Yields how often this was begun and not ended, this time included: a death leaves the mark behind.

    Where another process is at it just now, which is no death, it yields 1 and leaves the mark to that one.
    """
    path = store.root / "tmp" / f"{name}.tries"
    with contextlib.ExitStack() as stack:
        with store.explained():
            file = stack.enter_context(open(path, "ab", buffering=0))
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by death; unlike flock, not held by children
            except BlockingIOError:
                path = None
            else:
                file.write(b"x")
        try:
            yield os.fstat(file.fileno()).st_size if path else 1
        finally:  # also where something was raised: told, not died of
            if path:
                path.unlink(missing_ok=True)


def make_here(
    rows: Rows,
    recipe: Recipe,
    batches: Iterable[pa.Table],
    on_start: Callable[[int], object] = lambda n: None,
    on_progress: Callable[[int], object] = lambda n: None,
) -> dict[str, float]:
    """Makes every row that is not made yet in this process, without Ray; arguments and result as blocks.make_on_ray."""
    began, found = time.perf_counter(), {"rows": 0, "errors": 0, "start_seconds": 0.0, "seconds": 0.0}
    with waiting(rows, batches, recipe.block) as left:
        on_start(sum(left.sizes))
        if not left.sizes:
            return found
        recipe.check()
        worker = recipe.start()
        started = time.perf_counter()
        for number, size in enumerate(left.sizes):
            ready, early = recipe.prepare(left.block(number))
            found["errors"] += make_block(rows, ready, early, worker)
            found["rows"] += size
            on_progress(size)
    return found | {"start_seconds": started - began, "seconds": time.perf_counter() - started}


def clear_marks(store: Store, run: str) -> None:
    """Forgets what a run of a driver began and did not end, now that it ends itself."""
    for path in (store.root / "tmp").glob(f"{run}*.tries"):
        path.unlink(missing_ok=True)


def refuse_errors(index: Index, ids: np.ndarray, rate: float, what: str) -> None:
    """Raises Mistake where more than the share `rate` of the rows are errors."""
    reasons = index.reasons(ids)
    if len(reasons) > rate * len(ids):
        place, reason = next(iter(reasons.items()))
        raise Mistake(
            f"{len(reasons)} of {len(ids)} {what} are errors, more than the {rate:.0%} allowed; row {place}: {reason}",
            "mend or drop those rows; what is made is kept",
        )
