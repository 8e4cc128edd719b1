"""Rows on Ray: Ray Data reads blocks, prepares them on CPUs, and hands them to workers that commit what they make.

Ray itself is imported only once there is something to make: where all is there, a second run ends in seconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
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
    clear_counted_tries,
    counted_tries,
    make_block,
)
from harness.on_ray import session
from harness.store.store import Store

MAX_START_DEATHS = 5  # deaths of workers while they load their model: then it cannot be loaded, and trying on is no use
OBJECT_STORE_BYTES = 10**9  # bytes of prepared blocks on their way to workers; where they fill it, Ray Data holds back
WATCH_MINUTES = 30.0  # for a block: a thousand samples of a 70B model take about ten
FORWARDED_VARIABLES = ("MANYMINDS_CRASH", "HF_HOME", "HF_HUB_OFFLINE")  # of the driver's environment


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
    """Makes every row that is not made yet; returns `rows`, `errors`, `start_seconds`, and `seconds` after the start.

    batches: tables with a column `id` and the recipe's inputs.
    workers: each holds one model. By default as many as there are GPUs for; without GPUs, as `recipe.cpus` says.
    gpus: of one worker, where there are any: its tensor-parallel group.
    minutes: a worker that has not ended a block after so long is killed, and its block tried again.
    on_start, on_progress: called with the number of rows to make, and of rows newly made.

    The blocks to do lie in a file in the store, which is memory-mapped: nothing but prepared blocks is sent. Ray
    restarts a worker that dies and tries its block again (see rows.make_block).
    """
    began, found = time.time(), {"rows": 0, "errors": 0, "start_seconds": 0.0, "seconds": 0.0}
    run = f"{os.uname().nodename}-{os.getpid()}-{time.time_ns()}-"
    with blocks_to_make(rows, batches, recipe.block) as left:
        on_start(sum(left.sizes))
        if not left.sizes:
            return found
        recipe.check()
        with (
            contextlib.ExitStack() as afterwards,
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # where Ray tells of workers that died, which is seen to
            session.ray_session(
                rows.store, (os.cpu_count() or 1) + 1, OBJECT_STORE_BYTES
            ),  # one CPU for what Ray Data itself does
        ):
            afterwards.callback(clear_counted_tries, rows.store, run)  # once Ray and its workers are gone
            ready = float("inf")
            for done in _run_blocks(rows, recipe, left, workers, gpus, minutes, run):
                ready = min(ready, done["ready"])
                found["rows"] += done["rows"]
                found["errors"] += done["errors"]
                on_progress(done["rows"])
            ended = time.time()
    return found | {"start_seconds": ready - began, "seconds": ended - ready}


def _run_blocks(
    rows: CachedRows, recipe: Recipe, left: BlockFile, workers: int | None, gpus: int, minutes: float, run: str
) -> Iterator[dict]:
    """What each block's worker says of it, as blocks end."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what went wrong is raised, and progress is ours
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 0
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # `watched` sees to that, block by block

    there = ray.cluster_resources()
    cores = max(1, int(there["CPU"]) - 1)
    largest = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    if 0 < largest < gpus and not recipe.cpus:
        raise UserError(f"no node has {gpus} GPUs; the largest has {largest:g}", f"--gpus {largest:g}")
    resources: dict[str, Any]
    if largest and not recipe.cpus:
        recipe = replace(cast(Any, recipe), tensor_parallel=gpus)  # of a language model: others need no GPU
        workers, resources, threads = workers or int(there["GPU"] // gpus), {"num_gpus": gpus, "num_cpus": 1}, 1
    else:
        workers = workers or (cores // recipe.cpus if recipe.cpus else sum(n["Alive"] for n in ray.nodes()))
        threads, resources = recipe.cpus or max(1, cores // workers), {"num_cpus": 0.5}  # what prepares needs the rest
    # Set by the worker itself: an environment of Ray's making would cost a second and forgo processes started ahead.
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    environment |= {name: os.environ[name] for name in (*FORWARDED_VARIABLES, *environment) if name in os.environ}
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
        raise _user_error_within(error) or error from None


def _prepare_block(
    batch: dict[str, np.ndarray], left: BlockFile, recipe: Recipe, environment: dict[str, str]
) -> pa.Table:
    """One row, whatever Ray Data does with rows: a whole block as two Arrow files."""
    os.environ.update(environment)
    ready, early = recipe.prepare(left.read_block(int(batch["id"][0])))
    return pa.table(
        {
            "ready": pa.array([arrow_file_bytes(ready)], pa.large_binary()),
            "early": pa.array([arrow_file_bytes(early)], pa.large_binary()),
        }
    )


class _BlockWorker:
    """Holds one model; a block comes in, is made and committed, and what is said of it goes out."""

    def __init__(
        self, store: str, identity: dict, recipe: Recipe, minutes: float, environment: dict[str, str], run: str
    ) -> None:
        os.environ.update(environment)  # before the recipe imports what reads it
        self.rows, self.minutes, self.run = CachedRows(Store(store), identity), minutes, run
        try:
            self.worker = self.with_deadline()(self.load_model)(recipe)
        except Exception as error:  # told at the first block: of what is raised here the driver gets the text alone
            self.worker, self.error = self.raise_load_error, error
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
        self.ready = time.time()

    def load_model(self, recipe: Recipe) -> Worker:
        with counted_tries(self.rows.store, f"{self.run}start") as tries:
            if tries > MAX_START_DEATHS:
                raise UserError(
                    f"workers died {MAX_START_DEATHS} times while loading {dict(self.rows.identity)}",
                    "is there memory for it? manyminds ... --local shows what happens",
                )
            return recipe.start()

    def raise_load_error(self, ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
        raise self.error

    def __call__(self, batch: pa.Table) -> pa.Table:
        ready, early = (pa.ipc.open_file(batch[name][0].as_buffer()).read_all() for name in ("ready", "early"))
        wrong = make_block(self.rows, ready, early, self.with_deadline()(self.worker), self.run)
        return pa.table({"rows": [len(ready) + len(early)], "errors": [wrong], "ready": [self.ready]})

    @contextlib.contextmanager
    def with_deadline(self) -> Iterator[None]:
        """Ends this process if what follows takes too long, by a thread that no engine can keep from running.

        As a decorator it watches each call: where a block is done row by row, each row.
        """
        faulthandler.dump_traceback_later(60 * self.minutes, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _user_error_within(error: BaseException | None) -> UserError | None:
    """The UserError that Ray's errors are wrapped around."""
    while error is not None:
        inner = getattr(error, "cause", None)
        if isinstance(error, UserError) and not isinstance(inner, BaseException):
            return error
        error = inner if isinstance(inner, BaseException) else error.__cause__
    return None
