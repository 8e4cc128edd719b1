"""Cached rows made on Ray: Ray Data reads blocks, prepares them on CPUs, and sends them to workers that commit rows.

Ray is imported only if rows are missing, so that a second run ends in seconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.cache import CachedRows, arrow_file_bytes
from harness.inference.jobs import (
    BlockFile,
    Recipe,
    Worker,
    blocks_to_make,
    check_count,
    clear_counted_tries,
    counted_tries,
    make_block,
)
from harness.machine import core_count
from harness.on_ray import session
from harness.on_ray.watch import call_watched
from harness.store.store import Store

MAX_START_DEATHS = 5  # after this many worker deaths while the model is loaded, loading is taken to be impossible
OBJECT_STORE_BYTES = 10**9  # for prepared blocks on their way to workers; when it is full, Ray Data waits
WATCH_MINUTES = 30.0  # per block: a 70B model writes a thousand samples in about ten minutes
BLOCK_VARIABLES = ("MANYMINDS_CRASH", "HF_HOME", "HF_HUB_OFFLINE")  # from the driver's environment to workers


def make_on_ray(
    rows: CachedRows,
    recipe: Recipe,
    batches: Iterable[pa.Table],
    workers: int | None = None,
    gpus: int = 1,
    minutes: float = WATCH_MINUTES,
    on_start: Callable[[int], object] = lambda n: None,
    on_progress: Callable[[int], object] = lambda n: None,
) -> dict[str, float]:
    """Compute every missing row on Ray.

    batches: tables with a column `id` and the recipe's inputs.
    workers: each holds one model. Default: as many as the GPUs allow. A recipe with `cpus` uses no GPU, and has one
        worker per `cpus` cores. A recipe without `cpus` on a cluster without GPUs has one worker per node.
    gpus: GPUs per worker, if there are any: its tensor-parallel group.
    minutes: a worker that takes longer for a block is killed, and its block is tried again.
    on_start: called with the number of rows to compute.
    on_progress: called with the number of rows newly computed.

    Returns counts of `rows` and `errors`, `start_seconds` until the first worker had loaded its model, and `seconds`
    after that.

    The blocks to compute are in a memory-mapped file in the store, so only prepared blocks are sent. Ray restarts a
    worker that dies and tries its block again (see harness.inference.jobs.make_block). Raises UserError where workers
    cannot load the model, and where no node has enough GPUs.
    """
    began, found = time.time(), {"rows": 0, "errors": 0, "start_seconds": 0.0, "seconds": 0.0}
    run = f"{os.uname().nodename}-{os.getpid()}-{time.time_ns()}-"
    with blocks_to_make(rows, batches, recipe.rows_per_block) as left:
        check_count(recipe, sum(left.sizes))
        on_start(sum(left.sizes))
        if not left.sizes:
            return found
        recipe.check()
        ready, made = float("inf"), queue.SimpleQueue[dict]()

        def work() -> None:
            for done in _run_blocks(rows, recipe, left, workers, gpus, minutes, run):
                made.put(done)

        def look() -> None:
            nonlocal ready
            while not made.empty():
                done = made.get()
                ready = min(ready, done["ready"])
                found["rows"] += done["rows"]
                found["errors"] += done["errors"]
                on_progress(done["rows"])

        with (
            contextlib.ExitStack() as afterwards,
            session.without_ray_reports(),
            session.ray_session(rows.store, core_count() + 1, OBJECT_STORE_BYTES),  # one CPU for Ray Data
        ):
            afterwards.callback(clear_counted_tries, rows.store, run)  # called after Ray and its workers have ended
            call_watched(work, look)
            ended = time.time()
    return found | {"start_seconds": ready - began, "seconds": ended - ready}


def _run_blocks(
    rows: CachedRows, recipe: Recipe, left: BlockFile, workers: int | None, gpus: int, minutes: float, run: str
) -> Iterator[dict]:
    """Make the blocks, and yield the counts of each block when it is finished."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised, and progress is shown by the caller
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 0
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # `_BlockWorker.with_deadline` limits the time of each block

    there = ray.cluster_resources()
    cores = max(1, int(there["CPU"]) - 1)
    largest = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    if 0 < largest < gpus and not recipe.cpus:
        raise UserError(f"no node has {gpus} GPUs; the largest node has {largest:g}", f"--gpus {largest:g}")
    resources: dict[str, Any]
    if largest and not recipe.cpus:
        recipe = replace(cast(Any, recipe), tensor_parallel=gpus)  # recipes without `cpus` are of language models
        workers, resources, threads = workers or int(there["GPU"] // gpus), {"num_gpus": gpus, "num_cpus": 1}, 1
    else:
        workers = workers or (cores // recipe.cpus if recipe.cpus else sum(n["Alive"] for n in ray.nodes()))
        threads, resources = recipe.cpus or max(1, cores // workers), {"num_cpus": 0.5}  # the rest is for preparation
    # Each worker sets these variables itself: a Ray runtime environment costs a second and cannot use processes
    # that Ray has started ahead.
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    environment |= {name: os.environ[name] for name in (*BLOCK_VARIABLES, *environment) if name in os.environ}
    made = (
        ray.data.range(len(left.sizes), override_num_blocks=len(left.sizes))
        .map_batches(
            cast(Any, _prepare_block),
            fn_kwargs={"left": left, "recipe": recipe, "environment": environment},
            batch_size=1,
        )
        .map_batches(
            _BlockWorker,
            fn_constructor_args=(str(rows.store.root), dict(rows.identity), recipe, minutes, environment, run),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(left.sizes))),
            **resources,
        )
    )
    try:
        for batch in made.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pyarrow"):
            yield from cast(pa.Table, batch).to_pylist()
    except Exception as error:
        raise session.user_error_within(error) or error from None


def _prepare_block(
    batch: dict[str, np.ndarray], left: BlockFile, recipe: Recipe, environment: dict[str, str]
) -> pa.Table:
    """Prepare a block, and return it as one row of two Arrow files, which Ray Data cannot split."""
    os.environ.update(environment)
    ready, early = recipe.prepare(left.read_block(int(batch["id"][0])))
    return pa.table(
        {
            "ready": pa.array([arrow_file_bytes(ready)], pa.large_binary()),
            "early": pa.array([arrow_file_bytes(early)], pa.large_binary()),
        }
    )


class _BlockWorker:
    """A worker with one loaded model, which makes and commits blocks and returns their counts."""

    def __init__(
        self, store: str, identity: dict, recipe: Recipe, minutes: float, environment: dict[str, str], run: str
    ) -> None:
        os.environ.update(environment)  # before the recipe imports libraries that read it
        self.rows, self.minutes, self.run = CachedRows(Store(store), identity), minutes, run
        try:
            self.worker = self.with_deadline()(self.load_model)(recipe)
        except Exception as error:  # raised at the first block: of an error in __init__, the driver gets only the text
            self.worker, self.error = self.raise_load_error, error
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
        self.ready = time.time()

    def load_model(self, recipe: Recipe) -> Worker:
        """Load the model. Raises UserError where too many workers have died while loading it."""
        with counted_tries(self.rows.store, f"{self.run}start") as tries:
            if tries > MAX_START_DEATHS:
                raise UserError(
                    f"workers died {MAX_START_DEATHS} times while loading {dict(self.rows.identity)}",
                    "check that there is enough memory; run the same command with --local to see what happens",
                )
            return recipe.start()

    def raise_load_error(self, ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
        """Raise the error that occurred while the model was loaded."""
        raise self.error

    def __call__(self, batch: pa.Table) -> pa.Table:
        ready, early = (pa.ipc.open_file(batch[name][0].as_buffer()).read_all() for name in ("ready", "early"))
        wrong = make_block(self.rows, ready, early, self.with_deadline()(self.worker), self.run)
        return pa.table({"rows": [len(ready) + len(early)], "errors": [wrong], "ready": [self.ready]})

    @contextlib.contextmanager
    def with_deadline(self) -> Iterator[None]:
        """End this process if the code within takes longer than `minutes`.

        The watching thread is not Python's, so no engine can block it. Used as a decorator, it limits each call
        separately: a call computes a block, or one row where `make_block` goes row by row.
        """
        faulthandler.dump_traceback_later(60 * self.minutes, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
