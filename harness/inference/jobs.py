"""Inference jobs: missing vectors, samples or answers are computed block by block, one row for each text.

The rows of a block are committed together or not at all.
"""

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

# After this many worker deaths at a block, it is done row by row; after this many at a single row, that row becomes an
# error.
MAX_TRIES = 2


# prepared inputs -> rows, error table (ERROR_SCHEMA), counts that become facts of the block
Worker = Callable[[pa.Table], tuple[pa.Table, pa.Table, dict]]


class Recipe(Protocol):
    """The way to compute rows: a frozen, picklable dataclass, which can be sent to a machine with a GPU."""

    @property
    def rows_per_block(self) -> int:
        """Number of rows that one worker does at a time; a killed worker loses at most these."""

    @property
    def cpus(self) -> int:
        """CPU cores of each worker.

        0 means that each worker uses GPUs if the cluster has any. Otherwise the workers, by default one per machine,
        divide all cores.
        """

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Do the work that needs no model, such as tokenising.

        Returns inputs for the worker, with the column `id`, and an error table.
        """

    def start(self) -> Worker:
        """Load the model and return the worker."""

    def check(self) -> None:
        """Fetch the model, if there is one, before any worker starts. Raises UserError where the recipe cannot run."""


@dataclass(frozen=True, eq=False)
class Job:
    """Rows that are needed, with the recipe that computes them and its inputs.

    what: `vectors`, `samples`, `answers` or `likelihoods`, for messages.
    identity: everything that determines the rows' content. It names their *maker*: an encoder, generator or judge with
        its options.
    batches: returns tables with a column `id` and the recipe's inputs.
    """

    what: str
    identity: dict[str, object]
    recipe: Recipe
    batches: Callable[[], Iterable[pa.Table]]

    def cached_rows(self, store: Store) -> CachedRows:
        """Return the maker's rows in the store."""
        return CachedRows(store, self.identity)


class NotCachedError(UnavailableError):
    """Some needed rows are not in the store yet; `job` computes them."""

    def __init__(self, job: Job, count: int) -> None:
        verb = {"vectors": "encode", "samples": "generate"}.get(job.what)
        super().__init__(
            f"{count} {job.what} by {job.identity.get('model', 'this encoder')} are not computed yet",
            "manyminds run SUITE computes them" + (f", and so does manyminds {verb} SUITE" if verb else ""),
        )
        self.job, self.count = job, count

    def __reduce__(self):
        return type(self), (self.job, self.count)


def require_store(store: Store | None, model: str) -> Store:
    """Return the store. Raises UserError where there is none: outputs of language models are kept in a store."""
    if store is None:
        raise UserError(
            f"{model}: outputs of language models are kept in a store, but this task's `build` has none",
            "derive the task from harness.task.TextTask, and define build(self, seed, store)",
        )
    return store


def merge_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Merge the jobs that have the same identity, so that each model is loaded once."""
    by_identity: dict[str, list[Job]] = {}
    for job in jobs:
        by_identity.setdefault(identity_hash(dict(job.identity)), []).append(job)
    return [replace(same[0], batches=partial(_all_batches, same)) for same in by_identity.values()]


def _all_batches(jobs: list[Job]) -> Iterator[pa.Table]:
    return chain.from_iterable(job.batches() for job in jobs)


def missing_blocks(batches: Iterable[pa.Table], index: RowIndex, rows_per_block: int) -> Iterator[pa.Table]:
    """Yield the missing rows, each id once, in blocks of at most `rows_per_block` rows.

    Only ids are kept in memory, and the rows of one block.
    """
    # Sorted arrays of the ids seen so far. Each is at least twice as long as the next, so there are few.
    seen: list[np.ndarray] = []
    waiting: list[pa.Table] = []
    for batch in batches:
        ids = id_array(batch["id"])
        new = np.zeros(len(ids), dtype=bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for known in (index.ids, *seen):
            new &= find_places(known, ids) < 0
        seen.append(np.sort(ids[new]))
        while len(seen) > 1 and len(seen[-2]) < 2 * len(seen[-1]):
            seen[-2:] = [np.sort(np.concatenate(seen[-2:]), kind="stable")]
        waiting.append(batch.filter(pa.array(new)))
        while sum(map(len, waiting)) >= rows_per_block:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows_per_block)
            waiting = [joined.slice(rows_per_block)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


@dataclass(frozen=True)
class BlockFile:
    """The blocks to compute: one record batch per block, in one file, so that the texts need not fit in memory.

    sizes: the blocks' numbers of rows.
    """

    file: Path
    sizes: tuple[int, ...]

    def read_block(self, number: int) -> pa.Table:
        """Return block `number`, memory-mapped."""
        os.utime(self.file)  # marks the file as in use, however long the job takes: see store.STALE_AFTER_SECONDS
        return pa.Table.from_batches([pa.ipc.open_file(pa.memory_map(str(self.file))).get_batch(number)])


@contextlib.contextmanager
def blocks_to_make(rows: CachedRows, batches: Iterable[pa.Table], rows_per_block: int) -> Iterator[BlockFile]:
    """Write the blocks of missing rows to a file, which is removed at the end of this context."""
    file = private_path(Path("waiting.arrow"), rows.store.scratch_folder)
    try:
        sizes: list[int] = []
        with rows.store.os_errors_as_user_errors(), contextlib.ExitStack() as stack:
            for table in missing_blocks(batches, rows.build_index(), rows_per_block):
                if not sizes:
                    writer = stack.enter_context(pa.ipc.new_file(str(file), table.schema))
                writer.write_table(table.combine_chunks(), max_chunksize=len(table))
                sizes.append(len(table))
        yield BlockFile(file, tuple(sizes))
    finally:
        file.unlink(missing_ok=True)


def make_block(rows: CachedRows, prepared: pa.Table, early: pa.Table, worker: Worker, run: str = "") -> int:
    """Compute one block and commit it; return the number of its errors.

    prepared, early: the inputs and the errors that `Recipe.prepare` returned.
    run: a name for this run. It is part of the names of the files in which `counted_tries` counts, so marks of earlier
        runs do not count.

    A block at which workers died MAX_TRIES times is done row by row. A row at which workers died MAX_TRIES times
    becomes an error.
    """
    ids = np.concatenate([id_array(prepared["id"]), id_array(early["id"])])
    key = block_key(ids)
    if finished := rows.store.read_manifest(rows.store_kind, key):
        return finished["facts"]["errors"]
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
                        log.error(
                            "block %s: a worker died or hung while it computed the row %s by itself", key, one.hex()
                        )
                        wrong.append(
                            error_table([one], ["the worker died or hung while it computed this row by itself"])
                        )
        good = pa.concat_tables(made) if made else pa.table({"id": pa.array([], ID_TYPE)})
        bad = pa.concat_tables([table.cast(ERROR_SCHEMA) for table in wrong])
        counted = {"rows": len(good), "errors": len(bad), "seconds": time.perf_counter() - began}
        rows.commit(ids, good, bad, dict(facts) | counted | provenance.provenance_facts())
    log.info("block %s of %s: %d rows, %d errors in %.1f s", key, rows.store_kind, *counted.values())
    return len(bad)


@contextlib.contextmanager
def counted_tries(store: Store, name: str) -> Iterator[int]:
    """Yield how often this work was begun without being ended, this time included.

    Each beginning adds a mark, one byte, to a file, which is removed when the work ends. A process that dies leaves its
    mark behind. If another process is doing the same work now, 1 is yielded, and that process keeps the mark.

    name: of the work; the file is NAME.tries in the store's scratch folder.
    """
    path: Path | None = store.scratch_folder / f"{name}.tries"
    with contextlib.ExitStack() as stack:
        with store.os_errors_as_user_errors():
            file = stack.enter_context((store.scratch_folder / f"{name}.tries").open("ab", buffering=0))
            try:
                # The lock is released when the process dies; unlike flock's, children do not inherit it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                path = None
            else:
                file.write(b"x")
        try:
            yield os.fstat(file.fileno()).st_size if path else 1
        finally:  # also after an exception, which is reported and is not a death
            if path:
                path.unlink(missing_ok=True)


def check_count(recipe: Recipe, rows: int) -> None:
    """Raise UserError where a recipe that costs money is asked for more rows than it may make."""
    if rows and (check := getattr(recipe, "check_count", None)):
        check(rows)


def make_in_process(
    rows: CachedRows,
    recipe: Recipe,
    batches: Iterable[pa.Table],
    on_start: Callable[[int], object] = lambda n: None,
    on_progress: Callable[[int], object] = lambda n: None,
) -> dict[str, float]:
    """Compute every missing row in this process, without Ray.

    batches: tables with a column `id` and the recipe's inputs.
    on_start: called with the number of rows to compute.
    on_progress: called with the number of rows newly computed.

    Returns counts of `rows` and `errors`, `start_seconds` until the model was loaded, and `seconds` after that.
    """
    began, found = time.perf_counter(), {"rows": 0, "errors": 0, "start_seconds": 0.0, "seconds": 0.0}
    with blocks_to_make(rows, batches, recipe.rows_per_block) as left:
        check_count(recipe, sum(left.sizes))
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
    """Remove the marks of `counted_tries` that this run left; called when the run ends."""
    for path in store.scratch_folder.glob(f"{run}*.tries"):
        path.unlink(missing_ok=True)
