"""Verbs that run and show: run, board, reproduce, publish."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from harness import registry
from harness.cli.app import plan_suite, use_data
from harness.cli.inference_jobs import Maker
from harness.cli.options import QUICK, DataDir, Json, Local, Plugins, Reader, StoreDir, SuiteFile, Tracking
from harness.cli.terminal import bar, err
from harness.errors import Mistake
from harness.store.logs import logged_to, run_name
from harness.store.store import Store


def run(
    suite: SuiteFile = QUICK,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: Local = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers. [default: one per core]", show_default=False)
    ] = None,
    together: Annotated[
        int, typer.Option(min=1, help="Workers that train each language-model policy, a GPU or core each.")
    ] = 1,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="No policies without GPUs, which are used where there are any.")
    ] = False,
    mlflow: Tracking = None,
    reader: Reader = None,
    as_json: Json = False,
) -> None:
    """Runs what is not finished yet, then shows the board. Without a suite: the quick one."""
    began = time.monotonic()
    made = Maker(Store(store).open(), local)
    _check_reader(reader, made.store)
    if local and together > 1:
        raise Mistake("--local is one process, which trains alone", "leave out --local, or --together")
    if gpu:
        from harness.on_ray.trials import check_gpus

        check_gpus(together, made.store)
    planned, opened = plan_suite(suite, store, data, plugin, made)
    from harness.trials.plan import unfinished

    todo = unfinished(planned, opened)
    err.print(f"{planned.suite.title}: {len(planned.trials)} trials, {len(planned.trials) - len(todo)} finished before")
    from harness.report.to_mlflow import Publisher

    publisher = Publisher(planned, opened, mlflow)
    if todo:
        _run_trials(todo, opened, plugin, local, workers, made, publisher.trials, together)
    failed = unfinished(planned, opened)
    shown = _show_board(planned, opened, as_json, reader, made)
    with _aside("MLflow"):
        publisher.everything(shown)
    if not as_json:
        err.print(f"MLflow:  {publisher.how_to_open()}")
        err.print(f"done in {time.monotonic() - began:.0f} s")
    _tell_failed(failed, opened)


def board(
    suite: SuiteFile,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    reader: Reader = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """The leaderboard of what is finished: terminal, and a self-contained HTML file."""
    _check_reader(reader, Store(store))
    planned, opened = plan_suite(suite, store, data, plugin)
    _show_board(planned, opened, as_json, reader, Maker(Store(store).open(), local))


def reproduce(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Papers, claims such as N1, or suite files of your own; without any all are listed."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every claim of every paper.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer seeds and smaller tasks: a first verdict.")] = False,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: Local = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers. [default: one per core]", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Runs what published claims rest on, and says of each whether it holds."""
    from harness.claims import reproduce as claims
    from harness.claims.page import print_verdicts, write_page

    if not what and not every:
        _list_claims()
        return
    if what and every:
        raise Mistake("--all is every claim of every paper", f"leave out --all, or {' '.join(what)}")
    if data and not data.is_dir():
        raise Mistake(
            f"the data folder {data} does not exist", "name a folder that holds public data files: --data DIR"
        )
    began = time.monotonic()
    use_data(data)
    registry.add_plugins(plugin or [])
    names = what or []
    wanted, opened, unwritable, made = claims.chosen(names), Store(store), None, None
    try:
        made = Maker(Store(store).open(), local)
    except Mistake as mistake:  # what is finished can be read nevertheless
        unwritable = mistake
    for file in wanted:
        if quick and not claims.has_quick(file):
            err.print(f"{file.name} has no quick settings: it runs in full")
    with bar("preparing", claims.n_prepared(wanted, quick)) as step:
        parts = claims.chapters(wanted, opened, quick, lambda: step(1), made)
    trials = claims.trials_of(parts)
    todo = [t for t in trials if opened.read("trials", t.key) is None]
    counted = [f"{n} {what}{'s' if n != 1 else ''}" for n, what in ((len(parts), "suite"), (len(trials), "trial"))]
    err.print(f"{': '.join(counted)}, {len(trials) - len(todo)} finished before")
    if todo and unwritable:
        raise unwritable
    if todo and made:
        _run_trials(todo, opened, plugin, local, workers, made)
    found = claims.verdicts(parts)
    if as_json:
        print(json.dumps([judged.as_dict() for judged in found], indent=1, allow_nan=False))
    else:
        print_verdicts(found)
        page = write_page(found, parts, opened, names, quick) if not unwritable else f"none: {unwritable.message}"
        err.print(f"\npage:    {page}")
        err.print(f"done in {time.monotonic() - began:.0f} s")
    _tell_failed([t for t in trials if opened.read("trials", t.key) is None], opened)


def _list_claims() -> None:
    from harness.claims.reproduce import catalogue, title_of

    for file, (paper, listed) in catalogue().items():
        print(f"{paper}: {title_of(file)} ({file.stem})")
        print("\n".join(f"  {claim.id:4} {claim.title}" for claim in listed))
    err.print("\nmanyminds reproduce PAPER or ID checks some, manyminds reproduce --all checks every one")


def publish(
    suite: SuiteFile,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    mlflow: Tracking = None,
) -> None:
    """Writes the suite's results to MLflow; again and again without duplicates."""
    planned, opened = plan_suite(suite, store, data, plugin)
    from harness.report.to_mlflow import Publisher

    publisher = Publisher(planned, opened, mlflow)
    publisher.everything()
    print(publisher.how_to_open())


def _run_trials(
    todo, opened: Store, plugin, local: bool, workers, made: Maker, on_group=lambda trials: None, together: int = 1
) -> None:
    """Where methods ask a language model, one engine answers what all of their trials will ask beforehand."""
    for method in {trial.method for trial in todo}:
        method.ready(opened)
    if asking := [trial for trial in todo if trial.method.asks]:
        from harness.trials.questions import questions

        while jobs := questions(asking, opened):
            made(jobs)
    with logged_to(opened, run_name()), bar("running", len(todo)) as step:
        if local:
            from harness.trials.finish import finish_all

            for _ in finish_all(todo, opened):
                step(1)
        else:
            err.print("starting Ray, which takes some 15 s")
            from harness.on_ray.trials import run_on_ray

            run_on_ray(
                todo,
                opened,
                plugins=plugin or [],
                workers=workers,
                on_progress=step,
                on_group=on_group,
                together=together,
            )


def _tell_failed(failed, opened: Store) -> None:
    for trial in failed:
        reason = (opened.failure(trial.key) or {"reason": "did not run"})["reason"]
        err.print("failed", style="red", end=" ")
        err.print(f"{trial.key} {trial.method.name} on {trial.task.name}, seed {trial.seed}: {reason}")
    if failed:
        err.print(
            f"\nhint: manyminds show {failed[0].key} --store {opened.root} prints the traceback; the same command runs them again"
        )
        raise typer.Exit(1)


def _check_reader(reader: str | None, store: Store) -> None:
    """Raises Mistake where nobody is named, before anything runs."""
    if reader:
        from harness.inference.generate import make_generator

        make_generator(reader).check(store)


def _show_board(planned, opened: Store, as_json: bool, reader: str | None, make: Maker):
    from harness.board.make import make_board

    made = make_board(planned, opened)
    if as_json:
        print(json.dumps(made.as_dict(), indent=1))
    else:
        from harness.inference.jobs import Lacking
        from harness.report.html import write_html
        from harness.report.terminal import print_board

        print_board(made)
        try:
            page = write_html(made, opened, reader)
        except Lacking as lacking:  # the reader has not named these axes yet
            make([lacking.job])
            page = write_html(made, opened, reader)
        err.print(f"\nboard:   {page}")
    return made


@contextlib.contextmanager
def _aside(what: str) -> Iterator[None]:
    """For what may go wrong without costing a result."""
    try:
        yield
    except Mistake as mistake:
        err.print(f"{what}:", style="yellow", end=" ")
        err.print(f"{mistake.message}\n\nhint: {mistake.hint}; results are safe, `manyminds publish SUITE` tries again")
