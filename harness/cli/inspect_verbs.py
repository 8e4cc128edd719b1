"""Verbs that inspect without running trials: list, check, plan, show, doctor."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from harness import registry
from harness.cli.app import plan_with_progress, set_data_folder
from harness.cli.options import DataDir, JsonOutput, Plugins, QuickOnly, StoreDir, SuiteArgument
from harness.cli.terminal import print_json, stderr
from harness.errors import UserError
from harness.store.logs import log_files
from harness.store.store import Store


def list_(
    family: Annotated[str, typer.Option(help="Only those of this family, such as simulated.", show_default=False)] = "",
    paper: Annotated[str, typer.Option(help="Only those whose paper holds this word.", show_default=False)] = "",
    needs: Annotated[
        str,
        typer.Option(
            help="Only those that need this, such as texts, or those that need `nothing`.", show_default=False
        ),
    ] = "",
    plugin: Plugins = None,
    as_json: JsonOutput = False,
) -> None:
    """List tasks and methods, a line each."""
    registry.add_plugins(plugin or [])
    kinds = {"tasks": registry.list_names("task"), "methods": registry.list_names("method")}
    if family or paper or needs:  # only then import every task and method
        kinds = {kind: _filtered(kind.rstrip("s"), names, family, paper, needs) for kind, names in kinds.items()}
        if not any(kinds.values()):
            raise UserError("no task or method fits all of these filters", _filter_hint())
    if as_json:
        print_json(kinds)
        return
    width = max(len(name) for known in kinds.values() for name in known)
    for kind, known in kinds.items():
        if known:
            print(f"{kind}:")
            for name, line in known.items():
                licence = registry.licence_of(name) if kind == "tasks" else ""
                print(f"  {name:{width}}  {line}" + (f" [licence: {licence}]" if licence else ""))


def _filtered(kind: str, names: dict[str, str], family: str, paper: str, needs: str) -> dict[str, str]:
    from harness.cli.describe import needs_of

    found = {}
    for name, line in names.items():
        cls = registry.load_class(kind, name)
        needed = needs_of(kind, cls) or ["nothing"]
        if family in ("", cls.family) and paper.lower() in cls.paper.lower() and (not needs or needs in needed):
            found[name] = line
    return found


def _filter_hint() -> str:
    from harness.cli.describe import needs_of

    classes = [
        (kind, registry.load_class(kind, name)) for kind in ("task", "method") for name in registry.list_names(kind)
    ]
    families = sorted({cls.family for _, cls in classes})
    needs = sorted({need for kind, cls in classes for need in needs_of(kind, cls)} | {"nothing"})
    return f"families: {', '.join(families)}; needs: {', '.join(needs)}"


def check(
    name: Annotated[
        str,
        typer.Argument(help="A task's or method's name, a file that holds one, or a suite, whose tasks are checked."),
    ],
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    as_json: JsonOutput = False,
) -> None:
    """Check a task or method, or the tasks of a suite, against the contract of all tasks and methods."""
    set_data_folder(data)
    registry.add_plugins(plugin or [])
    from harness.check.contract import check_name, check_tasks_of_suite

    if name.endswith(".toml"):
        checked = check_tasks_of_suite(Path(name), Store(store))
    else:
        if name.endswith(".py") or "/" in name:
            registry.add_plugins([name])
            name = Path(name).stem
        checked = check_name(name, Store(store))

    failed, findings = 0, []
    told: set[str | None] = set()
    for found in checked:
        failed += found.problem is not None
        findings.append(dataclasses.asdict(found))
        if not as_json:
            problem = "the same as above" if found.problem and found.problem in told else found.problem
            told.add(found.problem)
            said = problem or found.detail
            print(f"{'FAIL' if problem else 'ok  '} {found.what}{f': {said}' if said else ''}")
    if as_json:
        print_json(findings)
    stderr.print(f"{name}: {len(findings)} checks ran, {failed} failed")
    raise typer.Exit(1 if failed else 0)


def plan(
    suite: SuiteArgument,
    store: StoreDir = Path("store"),
    quick: QuickOnly = False,
    data: DataDir = None,
    plugin: Plugins = None,
    as_json: JsonOutput = False,
) -> None:
    """Show what a run would do: its trials, the gains that it could detect, and how long it would take."""
    planned, opened = plan_with_progress(suite, store, data, plugin, quick=quick)
    from harness.trials.plan import describe_plan

    told = describe_plan(planned, opened)
    if as_json:
        print_json(told)
        return
    print(f"{planned.suite.title}  [{planned.suite.name} {planned.suite.digest}]")
    guessed = (
        f" (a guess for {told['guessed']} trials, of which none like them has run here)" if told["guessed"] else ""
    )
    print(
        f"trials: {told['trials']}, of which {told['finished']} are finished; "
        f"about {told['seconds_left']:.0f} s of one core's work left{guessed}"
    )
    for task in told["tasks"]:
        gain = task["detectable"]
        detects = "detects nothing: intervals need three seeds" if gain is None else f"detects a gain of {gain:.3f}"
        print(
            f"  {task['task']}: {task['people']} test people, {task['queries']} queries each, {task['seeds']} seeds; {detects}"
        )
    print(
        f"detects: limits for all methods at once then exclude the margin of {planned.suite.margin:g} with 80 % power, if two "
        "methods differ on a fifth of the queries (correlation of .05 within a person) and seeds differ no more than their people"
    )
    for task, reason in told["unavailable"].items():
        print(f"  {task} is left out: {reason}")
    for refusal in told["refusals"]:
        print(f"  {refusal['method']} does not run on {refusal['task']}: {refusal['reason']}")


def show(
    what: Annotated[
        str, typer.Argument(help="A task, a method, a claim such as N1, or the first digits of a trial's key.")
    ],
    store: StoreDir = Path("store"),
    save: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the trial's trained language model into, ready to load.", show_default=False
        ),
    ] = None,
    plugin: Plugins = None,
    as_json: JsonOutput = False,
) -> None:
    """Explain a task, a method, a claim or a trial: what it is, its fields, its source and its scores."""
    opened = Store(store)
    registry.add_plugins(plugin or [])
    from harness.cli import describe

    kinds = [kind for kind in ("task", "method") if what in registry.list_names(kind)]
    lines = describe.describe_claim(what)
    if not kinds and lines is None and re.fullmatch(r"[0-9a-f]+", what):
        _show_trial(what, opened, save, as_json)
        return
    if not kinds and lines is None:
        hint = registry.forgotten_plugin(what) or describe.near_names(what)
        raise UserError(f"there is no task, method, claim or trial {what!r}", hint)
    if save or as_json:
        option = "--save" if save else "--json"
        raise UserError(f"{option} is for trials, and {what!r} is not a key", "manyminds board SUITE --json lists keys")
    for kind in kinds:
        print("\n".join(describe.describe_setting(kind, what, opened)))
    if lines:
        print("\n".join(lines))


def _show_trial(key: str, opened: Store, save: Path | None, as_json: bool) -> None:
    """Print how a trial ran, or why it failed; with `save`, write the language model that it trained."""
    from harness.api.finished import find_trial
    from harness.cli.describe import accuracy_by_shots, with_current_field_names

    found = find_trial(opened, key)
    if save:
        if as_json:
            raise UserError("--save prints how to load the model, not JSON", "leave out one of the two")
        from harness.trials.export import save_trained_model

        print(save_trained_model(opened, found, save))
        return
    if as_json:
        print_json(found)
        return
    for file in log_files(opened, found["log"]) if found.get("log") else ():
        print(f"{'log':24} {file}")
    for part in ("identity", "facts"):
        for name, value in with_current_field_names(found.get(part, {})).items():
            if name == "curves":
                value = {curve: f"{len(points)} points, last {points[-1]:.4g}" for curve, points in value.items()}
            print(f"{name:24} {json.dumps(value)}")
    if "trace" in found:
        print(found["trace"], end="")
        return
    for shots, accuracy in accuracy_by_shots(opened, found).items():
        print(f"{f'accuracy at {shots} shots':24} {accuracy:.4f}")
    for name in found["files"]:
        print(f"{name:24} {opened.object_path(found, name)}")
    if "written.arrow" in found["files"]:
        from harness.board.text_worth import example_texts

        for whose, text in example_texts(opened, found):
            print(f"{whose:24} {json.dumps(text, ensure_ascii=False)}")
    if "learned.safetensors" in found["files"]:
        from harness.trials.export import has_model_to_export

        if has_model_to_export(found):
            print(f"{'its language model':24} manyminds show {found['key']} --save DIR, for transformers and vLLM")


def doctor(store: StoreDir = Path("store"), data: DataDir = None, as_json: JsonOutput = False) -> None:
    """Check this machine, the store and the security settings, a line each."""
    set_data_folder(data)
    from harness.cli.doctor import examine_machine

    findings = list(examine_machine(Store(store)))
    if as_json:
        print_json([dataclasses.asdict(f) for f in findings])
    else:
        for f in findings:
            print(f"{f.state:4} {f.what}: {f.detail}{f'  hint: {f.hint}' if f.hint else ''}")
    raise typer.Exit(1 if any(f.state == "BAD" for f in findings) else 0)
