"""Jobs: rows that are needed, made block by block, each block committed whole."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from harness.atomic import private_path
from harness.errors import UnavailableError, UserError
from harness.inference.cache import (
    ERROR_SCHEMA,
    ID_TYPE,
    CachedRows,
    RowIndex,
    block_key,
    error_table,
    find_places,
    id_array,
)
from harness.store import provenance
from harness.store.store import Store, identity_hash

log = logging.getLogger(__name__)

MAX_TRIES = 2  # of a block, or a row, whose worker died: then the block is done row by row, and the row is an error


Worker = Callable[
    [pa.Table], tuple[pa.Table, pa.Table, dict]
]  # prepared inputs -> rows, ERRORS, counts kept as facts of the block


class Recipe(Protocol):
    """How rows are made: a frozen dataclass, picklable, so that it can travel to where a GPU is."""

    @property
    def block(self) -> int:
        """Rows that one worker does at a time and a kill may cost."""

    @property
    def cpus(self) -> int:
        """Cores that one worker uses, where it needs no GPU; 0: a GPU, or all of a machine's cores."""

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Whatever needs no model, such as tokens: inputs ready for the worker, and ERRORS. Keeps `id`."""

    def start(self) -> Worker:
        """Loads the model."""

    def check(self) -> None:
        """Raises UserError where it is known before any worker starts that it cannot run here; fetches the model."""


@dataclass(frozen=True, eq=False)
class Job:
    """Rows that someone needs: who makes them, how, and of what.

    what: `vectors`, `samples` or `answers`, for messages.  batches: gives tables with `id` and the recipe's inputs.
    """

    what: str
    identity: dict[str, object]
    recipe: Recipe
    batches: Callable[[], Iterable[pa.Table]]

    def cached_rows(self, store: Store) -> CachedRows:
        return CachedRows(store, self.identity)


class NotCachedError(UnavailableError):
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


def require_store(store: Store | None, model: str) -> Store:
    """The store. Raises UserError where there is none: what a language model makes is kept in one."""
    if store is None:
        raise UserError(
            f"{model}: what a language model makes is kept in a store, and this task's `build` is given none",
            "derive the task from harness.task.TextTask, and write build(self, seed, store)",
        )
    return store


def merge_jobs(jobs: Iterable[Job]) -> list[Job]:
    """One job per maker, so that each model is loaded once."""
    by_maker: dict[str, list[Job]] = {}
    for job in jobs:
        by_maker.setdefault(identity_hash(dict(job.identity)), []).append(job)
    return [replace(same[0], batches=partial(_all_batches, same)) for same in by_maker.values()]


def _all_batches(jobs: list[Job]) -> Iterator[pa.Table]:
    return chain.from_iterable(job.batches() for job in jobs)


def missing_blocks(batches: Iterable[pa.Table], index: RowIndex, block: int) -> Iterator[pa.Table]:
    """The rows that are not made yet, each id once, in blocks of at most `block` rows. Ids alone are kept in memory."""
    runs: list[np.ndarray] = []  # of sorted ids seen, each at least twice as long as the next: few, and cheap to keep
    waiting: list[pa.Table] = []
    for batch in batches:
        ids = id_array(batch["id"])
        new = np.zeros(len(ids), dtype=bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for known in (index.ids, *runs):
            new &= find_places(known, ids) < 0
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
class BlockFile:
    """The blocks to make, a record batch each of one file in the store, and their numbers of rows: texts of any amount
    wait there, outside memory."""

    file: Path
    sizes: tuple[int, ...]

    def read_block(self, number: int) -> pa.Table:
        os.utime(self.file)  # it is in use, however long the job takes: see store.STALE
        return pa.Table.from_batches([pa.ipc.open_file(pa.memory_map(str(self.file))).get_batch(number)])


@contextlib.contextmanager
def blocks_to_make(rows: CachedRows, batches: Iterable[pa.Table], block: int) -> Iterator[BlockFile]:
    """What is not made yet. The file is gone afterwards."""
    file = private_path(Path("waiting.arrow"), rows.store.scratch_folder)
    try:
        sizes: list[int] = []
        with rows.store.os_errors_as_user_errors(), contextlib.ExitStack() as stack:
            for table in missing_blocks(batches, rows.build_index(), block):
                if not sizes:
                    writer = stack.enter_context(pa.ipc.new_file(str(file), table.schema))
                writer.write_table(table.combine_chunks(), max_chunksize=len(table))
                sizes.append(len(table))
        yield BlockFile(file, tuple(sizes))
    finally:
        file.unlink(missing_ok=True)


def make_block(rows: CachedRows, prepared: pa.Table, early: pa.Table, worker: Worker, run: str = "") -> int:
    """Does one block and commits it; returns the number of its errors.

    early: errors found while preparing. run: names this run of a driver, whose end is no death of its workers: they do
    not count what an earlier one left. A block at which a worker died twice is done row by row, each with a mark of its
    own, so that the row at which a worker dies alone becomes an error.
    """
    ids = np.concatenate([id_array(prepared["id"]), id_array(early["id"])])
    key = block_key(ids)
    if there := rows.store.read_manifest(rows.store_kind, key):
        return there["facts"]["errors"]
    began, facts = time.perf_counter(), Counter[str]()
    made: list[pa.Table] = []
    wrong = [early]

    def make(part: pa.Table) -> None:
        done, bad, more = worker(part)
        made.append(done)
        wrong.append(bad)
        facts.update(more)

    with counted_tries(rows.store, run + key) as tries:
        if tries <= MAX_TRIES and len(prepared):
            make(prepared)
        elif len(prepared):
            for place, one in enumerate(id_array(prepared["id"])):
                with counted_tries(rows.store, f"{run}{key}-{one.hex()}") as tried:
                    if tried <= MAX_TRIES:
                        make(prepared.slice(place, 1))
                    else:
                        log.error("block %s: a worker died or hung at the row %s alone", key, one.hex())
                        wrong.append(error_table([one], ["its worker died or hung at this row alone"]))
        good = pa.concat_tables(made) if made else pa.table({"id": pa.array([], ID_TYPE)})
        bad = pa.concat_tables([table.cast(ERROR_SCHEMA) for table in wrong])
        counted = {"rows": len(good), "errors": len(bad), "seconds": time.perf_counter() - began}
        rows.commit(ids, good, bad, dict(facts) | counted | provenance.provenance_facts())
    log.info("block %s of %s: %d rows, %d errors in %.1f s", key, rows.store_kind, *counted.values())
    return len(bad)


@contextlib.contextmanager
def counted_tries(store: Store, name: str) -> Iterator[int]:
    """Yields how often this was begun and not ended, this time included: a death leaves the mark behind.

    Where another process is at it just now, which is no death, it yields 1 and leaves the mark to that one.
    """
    path: Path | None = store.scratch_folder / f"{name}.tries"
    with contextlib.ExitStack() as stack:
        with store.os_errors_as_user_errors():
            file = stack.enter_context((store.scratch_folder / f"{name}.tries").open("ab", buffering=0))
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


def make_in_process(
    rows: CachedRows,
    recipe: Recipe,
    batches: Iterable[pa.Table],
    on_start: Callable[[int], object] = lambda n: None,
    on_progress: Callable[[int], object] = lambda n: None,
) -> dict[str, float]:
    """Makes every row that is not made yet in this process, without Ray; arguments and result as on_ray.inference.make_on_ray."""
    began, found = time.perf_counter(), {"rows": 0, "errors": 0, "start_seconds": 0.0, "seconds": 0.0}
    with blocks_to_make(rows, batches, recipe.block) as left:
        on_start(sum(left.sizes))
        if not left.sizes:
            return found
        recipe.check()
        worker = recipe.start()
        started = time.perf_counter()
        for number, size in enumerate(left.sizes):
            ready, early = recipe.prepare(left.read_block(number))
            found["errors"] += make_block(rows, ready, early, worker)
            found["rows"] += size
            on_progress(size)
    return found | {"start_seconds": started - began, "seconds": time.perf_counter() - started}


def clear_counted_tries(store: Store, run: str) -> None:
    """Forgets what a run of a driver began and did not end, now that it ends itself."""
    for path in store.scratch_folder.glob(f"{run}*.tries"):
        path.unlink(missing_ok=True)
