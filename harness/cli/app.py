"""The command-line app, and the steps that its commands share."""

from __future__ import annotations

import dataclasses
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import registry
from harness.cli.terminal import progress_bar
from harness.errors import UserError
from harness.store.logs import log_to_terminal
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.api.running import MakeRows
    from harness.trials.plan import Plan
    from harness.trials.suite import Suite

FIRST_DAY = """\
manyminds: who learns what one person prefers from a few choices?

  manyminds run                     run the quick suite: a leaderboard in about two minutes
  manyminds list                    list tasks and methods; manyminds show NAME explains one
  manyminds run SUITE --data DIR    run another suite of jobs/suites, such as people.toml on real people's choices
  manyminds check my_method.py      check your own task or method against the contract

manyminds --help lists all commands, manyminds COMMAND --help what each takes."""

app = typer.Typer(
    help="A benchmark harness for personalised reward models: who learns what one person prefers from a few choices?",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from harness.store.provenance import code_state

        print(f"manyminds {version('manyminds')} ({code_state()})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def global_options(
    context: typer.Context,
    verbose: Annotated[
        int,
        typer.Option("-v", "--verbose", count=True, help="Show the log too; -vv shows details.", show_default=False),
    ] = 0,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and its commit."),
    ] = False,
) -> None:
    if verbose:
        log_to_terminal(verbose)
    if context.invoked_subcommand is None:
        print(FIRST_DAY)


def set_data_folder(data: Path | None) -> None:
    """Set the folder of public data files, for this process and those that it starts."""
    if data is not None:
        os.environ["MANYMINDS_DATA"] = str(data.absolute())


def plan_with_progress(
    suite: Path,
    store: Path,
    data: Path | None,
    plugin: list[Path] | None,
    make: MakeRows | None = None,
    must_exist: bool = False,
    quick: bool = False,
) -> tuple[Plan, Store]:
    """Prepare a suite's tasks with a progress bar; return the plan and the opened store.

    make: makes missing samples and vectors; without it, missing ones raise a UserError. must_exist: the store is only
    read: it may be read-only, and a missing one raises UserError. quick: with the suite's quick settings.
    """
    from harness import api

    set_data_folder(data)
    registry.add_plugins(plugin or [])
    read = quick_suite(suite) if quick else suite
    opened = Store(store).existing() if must_exist else Store(store).open()
    return api.plan_suite(read, opened, plugins=plugin or [], make=make, progress=progress_bar), opened


def quick_suite(file: Path) -> Suite:
    """Read a suite with its quick settings, under a name of its own. Raises UserError where it has none."""
    from harness.trials.suite import load_toml, read_suite, shipped_suite

    if not load_toml(shipped_suite(file)).get("quick"):
        raise UserError(f"{file} has no quick settings", "leave out --quick, or add for example quick = { seeds = 3 }")
    read = read_suite(file, quick=True)
    return dataclasses.replace(read, name=f"{read.name}-quick", title=f"{read.title} (quick)")
