"""The verb that compares two stores, two suites or two methods."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import registry
from harness.cli.options import DataDir, JsonOutput, Plugins, StoreDir
from harness.cli.terminal import print_json, stderr
from harness.errors import UserError, did_you_mean
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.board.compare import RecordedTrial

SIDE = "A store's folder, a suite's TOML file, or a method, such as rfm or 'lore?weights=free'."


def compare(
    first: Annotated[str, typer.Argument(help=SIDE, show_default=False)],
    second: Annotated[str, typer.Argument(help=f"The same for the other side. {SIDE}", show_default=False)],
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    page: Annotated[
        Path | None, typer.Option(help="Also write an HTML page with a figure.", show_default=False)
    ] = None,
    fail_if_worse: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Exit with status 1 if a row is surely worse on the second side, and by more than this accuracy.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOutput = False,
) -> None:
    """Compare two stores (such as of two commits), two suites or two methods: paired by person and task, losses first."""
    from harness.board.compare import compare_trials

    registry.add_plugins(plugin or [])
    (before, kind), (after, other) = (_trials_of(side, Store(store), data) for side in (first, second))
    if (kind == "method") != (other == "method"):
        raise UserError(
            f"{first} is a {kind} and {second} a {other}", "compare two methods, or two sides that are stores or suites"
        )
    found = compare_trials(before, after, any_method=kind == "method")
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        from harness.report.comparison import print_comparison

        print_comparison(found)
    if page is not None:
        from harness.atomic import write_atomically
        from harness.report.comparison import comparison_page

        try:
            write_atomically(page, comparison_page(found, (first, second)))
        except OSError as error:
            raise UserError(f"{page} cannot be written ({error.strerror})", "name a file that you can write") from error
        stderr.print(f"page: {page}")
    if fail_if_worse is not None and any(-row.difference.value > fail_if_worse for row in found.surely(-1)):
        raise typer.Exit(1)


def _trials_of(side: str, store: Store, data: Path | None) -> tuple[list[RecordedTrial], str]:
    """Return the finished trials that a side names, and whether it is a store, a suite or a method."""
    from harness.board.compare import finished_trials, with_method

    if Path(side).is_dir():
        return finished_trials(Store(side).existing()), "store"
    name, _, fields = side.partition("?")
    if side.endswith(".toml"):
        from harness.cli.app import plan_with_progress

        planned, opened = plan_with_progress(Path(side), store.root, data, None, must_exist=True)
        return finished_trials(opened, [trial.key for trial in planned.trials]), "suite"
    if "/" in name:
        raise UserError(f"there is no store in {side}", "name the folder of a store, a suite's TOML file, or a method")
    from harness.fields import names_by_recorded_name, recorded_values

    if name not in registry.list_names("method"):
        sides = "name the folder of a store, a suite's TOML file, or a method"
        hint = did_you_mean(name, registry.list_names("method"), sides)
        raise UserError(f"there is no store, suite or method {name!r}", hint)
    given = registry.parse_setting("method", side)  # raises UserError for an unknown field
    asked, names = {pair.partition("=")[0] for pair in fields.split("&")}, names_by_recorded_name(type(given))
    wanted = {key: value for key, value in recorded_values(given).items() if names.get(key, key) in asked}
    found = with_method(finished_trials(store.existing()), name, json.loads(json.dumps(wanted)))
    if not found:
        raise UserError(f"{store.root} has no finished trial of {side}", "run a suite with it, or name another --store")
    return found, "method"
