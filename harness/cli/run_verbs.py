"""Verbs that run trials and show results: run, board, reproduce, publish."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import registry
from harness.cli.app import plan_with_progress, quick_suite, set_data_folder
from harness.cli.inference_jobs import JobRunner
from harness.cli.options import (
    QUICK_SUITE,
    AxisNamer,
    DataDir,
    JsonOutput,
    LocalOnly,
    Plugins,
    QuickOnly,
    StoreDir,
    SuiteArgument,
    TrackingUri,
    TrialMinutes,
)
from harness.cli.terminal import print_json, progress_bar, stderr
from harness.errors import UserError
from harness.on_ray.marks import DEFAULT_TRIAL_MINUTES
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.board.board import Board
    from harness.report.to_mlflow import Publisher
    from harness.trials.trial import Trial


def run(
    suite: SuiteArgument = QUICK_SUITE,
    store: StoreDir = Path("store"),
    quick: QuickOnly = False,
    data: DataDir = None,
    plugin: Plugins = None,
    local: LocalOnly = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers. Default: one per core.", show_default=False)
    ] = None,
    workers_per_policy: Annotated[
        int, typer.Option(min=1, help="Workers that train one language-model policy together, on a GPU or core each.")
    ] = 1,
    trial_minutes: TrialMinutes = DEFAULT_TRIAL_MINUTES,
    require_gpu: Annotated[
        bool, typer.Option("--require-gpu", help="Stop with an error if there is no GPU to train policies on.")
    ] = False,
    mlflow: TrackingUri = None,
    axis_namer: AxisNamer = None,
    as_json: JsonOutput = False,
) -> None:
    """Run the trials of a suite that are not finished, then show the board. Without a suite, run the quick one."""
    from harness.trials.suite import read_suite

    began = time.monotonic()
    registry.add_plugins(plugin or [])
    quick_suite(suite) if quick else read_suite(suite)  # before a store is made: a mistake in it leaves nothing behind
    made = JobRunner(Store(store).open(), local)
    _check_axis_namer(axis_namer, made.store)
    if local and workers_per_policy > 1:
        raise UserError(
            "--local is one process, so a policy cannot have several workers",
            "leave out --local, or --workers-per-policy",
        )
    if require_gpu:
        from harness.on_ray.trials import check_gpus

        check_gpus(workers_per_policy, made.store)
    planned, opened = plan_with_progress(suite, store, data, plugin, made, quick=quick)
    from harness.trials.plan import unfinished_trials

    todo = unfinished_trials(planned.trials, opened)
    stderr.print(
        f"{planned.suite.title}: {len(planned.trials)} trials, {len(planned.trials) - len(todo)} finished before"
    )
    from harness.report.to_mlflow import Publisher

    publisher = Publisher(planned, opened, mlflow)
    trouble = None
    if todo:
        trouble = _run_trials(
            todo,
            opened,
            plugin,
            local,
            workers,
            made,
            on_group=publisher.publish_trials,
            workers_per_policy=workers_per_policy,
            trial_minutes=trial_minutes,
        )
    failed = unfinished_trials(todo, opened)
    if trouble and len(failed) == len(planned.trials):
        raise trouble
    shown = _show_board(planned, opened, as_json, axis_namer, made)
    _publish_or_warn(publisher, shown, ran=bool(todo), quiet=as_json)
    if not as_json:
        stderr.print(f"done in {time.monotonic() - began:.0f} s")
    _report_failures(failed, opened, trouble)


def board(
    suite: SuiteArgument,
    store: StoreDir = Path("store"),
    quick: QuickOnly = False,
    data: DataDir = None,
    plugin: Plugins = None,
    axis_namer: AxisNamer = None,
    local: LocalOnly = False,
    as_json: JsonOutput = False,
) -> None:
    """Show the leaderboard of finished trials in the terminal, and write it as one HTML file."""
    _check_axis_namer(axis_namer, Store(store))
    planned, opened = plan_with_progress(suite, store, data, plugin, must_exist=True, quick=quick)
    others = ", ".join(name for name in opened.suites() if name != planned.suite.name)
    shown = _show_board(planned, opened, as_json, axis_namer, JobRunner(opened, local))
    if not any(row.keys for task in shown.tasks for row in task.rows):
        which = f", which has: {others}" if others else ""
        stderr.print(f"nothing of {planned.suite.name} has run in {opened.root}{which}")


def export(
    suite: SuiteArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder for the data set.", show_default=False)],
    store: StoreDir = Path("store"),
    quick: QuickOnly = False,
    data: DataDir = None,
    plugin: Plugins = None,
    as_json: JsonOutput = False,
) -> None:
    """Write a suite's pairs, items and predictions as a data set: parquet, a card for `datasets`, and Croissant."""
    from harness.api.to_datasets import export_suite

    planned, opened = plan_with_progress(suite, store, data, plugin, must_exist=True, quick=quick)
    files = export_suite(planned, opened, folder)
    if as_json:
        print_json([str(file) for file in files])
        return
    for file in files:
        print(f"{file}  {file.stat().st_size:,} bytes")
    if not any(file.name == "predictions.parquet" for file in files):
        stderr.print(f"no predictions: nothing of {suite} has run in this store yet")
    name = f"{planned.suite.tasks[0].name}-pairs" if len(planned.suite.tasks) == 1 else f"{files[0].parent.name}-pairs"
    stderr.print(f'load it by datasets.load_dataset("{folder}", "{name}")')


def reproduce(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Papers, claims such as N1, or your own suite files; without any, all claims are listed."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every claim of every paper.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer seeds and smaller tasks, for a preliminary verdict.")
    ] = False,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: LocalOnly = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers. Default: one per core.", show_default=False)
    ] = None,
    trial_minutes: TrialMinutes = DEFAULT_TRIAL_MINUTES,
    as_json: JsonOutput = False,
) -> None:
    """Run the trials that published claims need, and judge whether each claim holds."""
    from harness.claims import reproduce as claims
    from harness.claims.page import print_verdicts, write_claims_page

    if not what and not every:
        _list_claims()
        return
    if what and every:
        raise UserError(
            "--all selects every claim of every paper, so no names may be given",
            f"leave out --all, or {' '.join(what)}",
        )
    if data and not data.is_dir():
        raise UserError(
            f"the data folder {data} does not exist", "name a folder that holds public data files: --data DIR"
        )
    began = time.monotonic()
    set_data_folder(data)
    registry.add_plugins(plugin or [])
    from harness.trials.plan import unfinished_trials

    names = what or []
    wanted, opened, unwritable, made = claims.choose_claims(names), Store(store), None, None
    try:
        made = JobRunner(Store(store).open(), local)
    except UserError as mistake:  # finished trials can still be read
        unwritable = mistake
    for file in wanted:
        if quick and not claims.has_quick_settings(file):
            stderr.print(f"{file.name} has no quick settings: it runs in full")
    with progress_bar("preparing", claims.count_tasks_to_prepare(wanted, quick)) as step:
        parts = claims.plan_chapters(wanted, opened, quick, lambda: step(1), made)
    trials = claims.trials_of_chapters(parts)
    todo = unfinished_trials(trials, opened)
    counted = [f"{n} {what}{'s' if n != 1 else ''}" for n, what in ((len(parts), "suite"), (len(trials), "trial"))]
    stderr.print(f"{': '.join(counted)}, {len(trials) - len(todo)} finished before")
    if todo and unwritable:
        raise unwritable
    trouble = None
    if todo and made:
        trouble = _run_trials(todo, opened, plugin, local, workers, made, trial_minutes=trial_minutes)
    found = claims.judge_chapters(parts)
    if as_json:
        print_json([judged.as_dict() for judged in found])
    else:
        print_verdicts(found)
        page = (
            write_claims_page(found, parts, opened, names, quick) if not unwritable else f"none: {unwritable.message}"
        )
        stderr.print(f"\npage:    {page}")
        stderr.print(f"done in {time.monotonic() - began:.0f} s")
    _report_failures(unfinished_trials(todo, opened), opened, trouble)


def _list_claims() -> None:
    from harness.claims.reproduce import shipped_claims, suite_title

    for file, (paper, listed) in shipped_claims().items():
        print(f"{paper}: {suite_title(file)} ({file.stem})")
        print("\n".join(f"  {claim.id:4} {claim.title}" for claim in listed))
    stderr.print("\nmanyminds reproduce NAME checks a paper or a claim, manyminds reproduce --all checks all of them")


def publish(
    suite: SuiteArgument,
    store: StoreDir = Path("store"),
    quick: QuickOnly = False,
    data: DataDir = None,
    plugin: Plugins = None,
    mlflow: TrackingUri = None,
) -> None:
    """Write a suite's results to MLflow; repeating the command makes no duplicates."""
    planned, opened = plan_with_progress(suite, store, data, plugin, quick=quick)
    from harness.report.to_mlflow import Publisher

    publisher = Publisher(planned, opened, mlflow)
    publisher.publish_everything()
    print(publisher.command_to_open())


def _run_trials(
    todo: list[Trial],
    opened: Store,
    plugin: list[Path] | None,
    local: bool,
    workers: int | None,
    made: JobRunner,
    **options,
) -> UserError | None:
    """Run the trials with a progress bar; return the error that kept some from running, so that others can be shown.

    options: further arguments of harness.api.run_trials.
    """
    from harness import api
    from harness.cli.task_news import TaskNews

    if not local:
        stderr.print("starting Ray, which takes about 15 s")
    try:
        api.run_trials(
            todo,
            opened,
            make=made,
            on_ray=not local,
            plugins=plugin or [],
            workers=workers,
            progress=TaskNews(todo, opened).progress,
            **options,
        )
    except UserError as mistake:
        return mistake
    return None


def _report_failures(failed: list[Trial], opened: Store, trouble: UserError | None) -> None:
    """Say why trials failed. Raises the error that kept others from running, which says how many they are."""
    for trial in failed:
        note = opened.read_failure(trial.key)
        if note or not trouble:
            reason = note["reason"] if note else "another run tries it again"
            stderr.print("failed", style="red", end=" ")
            stderr.print(f"{trial.key} {trial.method.name} on {trial.task.name}, seed {trial.seed}: {reason}")
    if trouble:
        raise trouble
    if failed:
        stderr.print(
            f"\nhint: manyminds show {failed[0].key} --store {opened.root} prints the traceback; "
            "repeat this command to run the failed trials again"
        )
        raise typer.Exit(1)


def _check_axis_namer(axis_namer: str | None, store: Store) -> None:
    """Raise UserError before anything runs if the axis namer is unknown or unavailable."""
    if axis_namer:
        from harness.inference.generate import parse_generator

        parse_generator(axis_namer).check_available(store)


def _show_board(planned, opened: Store, as_json: bool, axis_namer: str | None, make: JobRunner):
    from harness.board.make import make_board

    made = make_board(planned, opened)
    if as_json:
        print_json(made.as_dict())
    else:
        from harness.inference.jobs import NotCachedError
        from harness.report.page.html import write_html
        from harness.report.terminal import print_board

        print_board(made)
        try:
            page: object = write_html(made, opened, axis_namer)
        except NotCachedError as lacking:  # the language model has not named these axes yet
            make([lacking.job])
            page = write_html(made, opened, axis_namer)
        except OSError as error:  # the store is read-only
            page = f"no page was written: {error.strerror or error}"
        stderr.print(f"\nboard:   {page}")
    return made


def _publish_or_warn(publisher: Publisher, shown: Board, ran: bool, quiet: bool) -> None:
    """Publish a board to MLflow and say how to open it; a failure is a warning, for nothing can be lost by it.

    ran: whether this command has run trials. Otherwise MLflow may hold the board already.
    """
    try:
        (publisher.publish_everything if ran else publisher.publish_if_changed)(shown)
    except UserError as mistake:
        stderr.print("warning:", style="yellow", end=" ")
        stderr.print(f"{mistake.message}; all results are safe in the store")
        stderr.print(f"\nhint: {mistake.hint}; then `manyminds publish SUITE` tries again")
        return
    if not quiet:
        stderr.print(f"MLflow:  {publisher.command_to_open()}")
