"""The app that verbs belong to, and what they share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness import registry
from harness.cli.terminal import progress_bar
from harness.store.logs import log_to_store, log_to_terminal, run_name
from harness.store.store import Store

app = typer.Typer(
    help="A benchmark harness for personalised reward models: who learns what one person prefers from a few choices?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def global_options(
    verbose: Annotated[
        int,
        typer.Option("-v", "--verbose", count=True, help="Show the log too; -vv shows details.", show_default=False),
    ] = 0,
) -> None:
    if verbose:
        log_to_terminal(verbose)


def set_data_folder(data: Path | None) -> None:
    if data is not None:
        os.environ["MANYMINDS_DATA"] = str(data.absolute())


def plan_suite(suite: Path, store: Path, data: Path | None, plugin: list[Path] | None, make=None):
    """The plan, and the store, opened. make: makes what tasks lack of samples and vectors; without it that is a UserError."""
    set_data_folder(data)
    registry.add_plugins(plugin or [])
    from harness.trials.plan import make_plan
    from harness.trials.suite import read_suite

    read = read_suite(suite)
    opened = Store(store).open()
    with log_to_store(opened, run_name()), progress_bar("preparing", len(read.tasks) * len(read.seeds)) as step:
        return make_plan(read, opened, lambda: step(1), make), opened
