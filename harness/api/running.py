"""Suites run from Python: planned, made ready, run on Ray or in this process, and compared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import polars as pl

from harness import registry
from harness.api.to_datasets import export_suite
from harness.board.board import Board
from harness.board.make import make_board
from harness.board.size import check_board_fits
from harness.inference.jobs import Job, make_in_process
from harness.method import Method
from harness.on_ray.marks import DEFAULT_TRIAL_MINUTES
from harness.report import board_frames
from harness.sources.public_files import DATA_FOLDER_VARIABLE
from harness.store.logs import log_to_store, run_name
from harness.store.store import Store
from harness.task import Task
from harness.trials.finish import finish_trials
from harness.trials.plan import Plan, make_plan, unfinished_trials
from harness.trials.questions import jobs_of_questions
from harness.trials.suite import Suite, read_suite
from harness.trials.trial import Trial

MakeRows = Callable[[list[Job]], None]  # makes the vectors, samples and answers that jobs describe


class Progress(Protocol):
    """A display of how far a long step has come: `with progress("running", total) as step: step(n)`."""

    def __call__(self, what: str, total: int) -> AbstractContextManager[Callable[[int], object]]: ...


@contextlib.contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show nothing; a Progress for programs."""
    yield lambda n: None


@dataclass(frozen=True, eq=False)
class SuiteRun:
    """A suite with its finished trials in a store. Every frame is a polars DataFrame."""

    plan: Plan
    store: Store

    @cached_property
    def board(self) -> Board:
        """The leaderboard of what is finished; a method with missing trials is incomplete on it, without rank or interval."""
        return make_board(self.plan, self.store)

    def scores(self) -> pl.DataFrame:
        """Return a row per task and method at the largest number of shots: rank, accuracy, gain, costs, with 95 % limits."""
        return board_frames.scores_frame(self.board)

    def curves(self) -> pl.DataFrame:
        """Return a row per task, method, metric and number of shots: value, low, high."""
        return board_frames.curves_frame(self.board)

    def differences(self) -> pl.DataFrame:
        """Return a row per task, number of shots and pair of methods: paired difference in accuracy, low, high."""
        return board_frames.differences_frame(self.board)

    def verdicts(self) -> pl.DataFrame:
        """Return a row per task: the verdict, how many people and seeds it rests on, and warnings."""
        return board_frames.verdicts_frame(self.board)

    def export(self, folder: str | Path) -> list[Path]:
        """Write every task's pairs and items and all finished predictions as parquet, with a data set card.

        folder: new or empty. Raises UserError where it holds files.
        """
        return export_suite(self.plan, self.store, Path(folder))

    def trials(self) -> pl.DataFrame:
        """Return a row per trial: key, task, method, seed, whether it is finished, and why it failed."""
        rows = []
        for trial in self.plan.trials:
            finished = self.store.read_manifest("trials", trial.key) is not None
            failure = None if finished else self.store.read_failure(trial.key)
            rows.append(
                {
                    "key": trial.key,
                    "task": trial.task.name,
                    "method": trial.method.name,
                    "seed": trial.seed,
                    "finished": finished,
                    "failure": failure and failure["reason"],
                }
            )
        return pl.DataFrame(rows, schema_overrides={"failure": pl.String})


def make_suite(
    tasks: Iterable[Task],
    methods: Iterable[Method],
    seeds: int | Sequence[int] = 5,
    *,
    name: str = "python",
    title: str = "",
    margin: float = Suite.margin,
) -> Suite:
    """Return a suite of these tasks and methods, without any that you do not name.

    margin: the smallest gain in accuracy over `shared` worth having; the verdict on each task uses it.
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    return Suite(name, title or name, chosen, tuple(tasks), tuple(methods), margin)


@contextlib.contextmanager
def data_folder(folder: str | Path | None) -> Iterator[None]:
    """Look for public data files in this folder inside the block; None changes nothing."""
    before = os.environ.get(DATA_FOLDER_VARIABLE)
    if folder is not None:
        os.environ[DATA_FOLDER_VARIABLE] = str(Path(folder).absolute())
    try:
        yield
    finally:
        if folder is not None:
            os.environ.pop(DATA_FOLDER_VARIABLE)
            if before is not None:
                os.environ[DATA_FOLDER_VARIABLE] = before


def plan_suite(
    suite: str | Path | Suite,
    store: str | Path | Store = "store",
    *,
    plugins: Iterable[str | Path] = (),
    make: MakeRows | None = None,
    progress: Progress = silent,
) -> Plan:
    """Prepare a suite's tasks and list its trials; nothing is fitted.

    suite: a TOML file, or a Suite. make: makes the vectors and samples that tasks lack; without it a task that lacks
    some raises NotCachedError. Raises UserError for anything wrong in the suite, and where its board would not fit into
    this machine's memory.
    """
    registry.add_plugins(plugins)
    read = suite if isinstance(suite, Suite) else read_suite(suite)
    opened = _open_store(store)
    with log_to_store(opened, run_name()), progress("preparing", len(read.tasks) * len(read.seeds)) as step:

        def on_prepared() -> None:
            step(1)

        plan = make_plan(read, opened, on_prepared, make)
    check_board_fits(plan)
    return plan


def run_trials(
    trials: Sequence[Trial],
    store: Store,
    *,
    make: MakeRows,
    on_ray: bool = True,
    plugins: Sequence[str | Path] = (),
    workers: int | None = None,
    workers_per_policy: int = 1,
    trial_minutes: float = DEFAULT_TRIAL_MINUTES,
    on_group: Callable[[list[Trial]], object] = lambda trials: None,
    progress: Progress = silent,
) -> None:
    """Run prepared trials; each ends with its result in the store, or with the reason of its failure.

    make: makes the answers of language models that methods will ask for; they are made before any trial runs.
    workers: Ray Train workers in all, by default one per core. workers_per_policy: workers that train each language-model
    policy together. trial_minutes: on Ray, a trial that takes longer is ended and fails. on_group: called with the trials
    of each group that Ray has finished before others. Raises UserError where trials did not run.
    """
    for method in {trial.method for trial in trials}:
        method.prepare_models(store)
    if asking := [trial for trial in trials if trial.method.asks_model]:
        while jobs := jobs_of_questions(asking, store):
            make(jobs)
    with log_to_store(store, run_name()), progress("running", len(trials)) as step:
        if not on_ray:
            for _ in finish_trials(trials, store):
                step(1)
            return
        from harness.on_ray.trials import run_trials_on_ray

        run_trials_on_ray(
            trials,
            store,
            plugins=plugins,
            workers=workers,
            on_progress=step,
            on_group=on_group,
            workers_per_policy=workers_per_policy,
            trial_minutes=trial_minutes,
        )


def run_suite(
    suite: str | Path | Suite,
    store: str | Path | Store = "store",
    *,
    on_ray: bool = False,
    plugins: Sequence[str | Path] = (),
    data: str | Path | None = None,
    workers: int | None = None,
    workers_per_policy: int = 1,
    trial_minutes: float = DEFAULT_TRIAL_MINUTES,
    progress: Progress = silent,
) -> SuiteRun:
    """Run what a suite has not finished yet, and return its results.

    suite: a TOML file, or a Suite (see make_suite). store: the folder of results; a second run computes nothing twice.
    on_ray: on the cluster that RAY_ADDRESS names, or a Ray of this machine; otherwise in this process. data: the folder
    of public data files. trial_minutes: on Ray, a trial that takes longer is ended and fails. Failed trials raise nothing: `SuiteRun.trials` lists them with their reasons.
    """
    opened = _open_store(store)

    def make(jobs: list[Job]) -> None:
        for job in jobs:
            make_rows(job, opened, on_ray=on_ray, progress=progress)

    with data_folder(data):
        plan = plan_suite(suite, opened, plugins=plugins, make=make, progress=progress)
        if left := unfinished_trials(plan.trials, opened):
            run_trials(
                left,
                opened,
                make=make,
                on_ray=on_ray,
                plugins=plugins,
                workers=workers,
                workers_per_policy=workers_per_policy,
                trial_minutes=trial_minutes,
                progress=progress,
            )
    return SuiteRun(plan, opened)


def make_rows(
    job: Job,
    store: Store,
    *,
    on_ray: bool,
    progress: Progress = silent,
    on_start: Callable[[int], object] = lambda n: None,
    **ray_options,
) -> dict[str, float]:
    """Make the vectors, samples or answers of one job that the store lacks; return counts and seconds.

    on_start: called with the number of rows to make. ray_options: `workers`, `gpus` and `minutes` of
    harness.on_ray.inference.make_on_ray.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to_store(store, run_name()))
        steps: list[Callable[[int], object]] = []

        def start(count: int) -> None:
            on_start(count)
            if count:
                steps.append(stack.enter_context(progress(job.what, count)))

        def advance(count: int) -> None:
            steps[0](count)

        rows = job.cached_rows(store)
        if not on_ray:
            return make_in_process(rows, job.recipe, job.batches(), start, advance)
        from harness.on_ray.inference import make_on_ray

        return make_on_ray(rows, job.recipe, job.batches(), on_start=start, on_progress=advance, **ray_options)


def _open_store(store: str | Path | Store) -> Store:
    return store if isinstance(store, Store) else Store(store).open()
