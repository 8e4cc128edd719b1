"""`manyminds describe`: what a table of judgements holds, and the suite that it suggests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import registry
from harness.cli.app import set_data_folder
from harness.cli.options import DataDir, JsonOutput, Plugins
from harness.cli.terminal import print_json
from harness.errors import UserError, error_prefix

if TYPE_CHECKING:
    from harness.table_task import TableTask

NUMBERS = {  # of a description, in the order in which they are printed, in words
    "people": "people",
    "pairs": "pairs",
    "answers": "answers",
    "pairs_of_a_person": "pairs of a person",
    "answers_of_a_person": "answers of a person",
    "prompts": "prompts",
    "responses": "different responses",
    "items": "different items",
    "answers_of_an_item": "answers of an item, on average",
    "values": "answers by value",
    "ties": "ties",
    "repeated": "repeated by the same person",
    "askable": "people with enough of them to be asked",
    "contradictions": "answered both ways by the same person",
    "long_responses": "responses of more than 2,000 characters",
    "shared_pairs": "pairs that several people judged",
    "disagreement": "two people who judged the same pair disagree in",
    "shared": "variance of answers that people share; the rest is taste and noise",
    "form": "form alone, such as length and brackets, tells the chosen response in",
}
SHARES = ("long_responses", "shared_pairs", "disagreement", "shared", "form")
FEWEST_ASKED = 20  # people; with fewer, intervals are so wide that a board rarely tells methods apart


def describe(
    table: Annotated[
        str,
        typer.Argument(help="A table (.csv, .jsonl, .parquet, .arrow, or a folder of datasets), or a suite (.toml)."),
    ],
    task: Annotated[
        str,
        typer.Option(help="A task or preset whose fields describe the table, such as multipref.", show_default=False),
    ] = "",
    data: DataDir = None,
    plugin: Plugins = None,
    as_json: JsonOutput = False,
) -> None:
    """Describe a table of choices, ratings or votes, or those of a suite: columns, people, ties, disagreement."""
    set_data_folder(data)
    registry.add_plugins(plugin or [])
    told = [_description(found) for found in _tasks(table, task)]
    if as_json:
        print_json(told)
        raise typer.Exit(2 if any(one["problem"] for one in told) else 0)
    for one in told:
        _print_description(one)
    if any(one["problem"] for one in told):
        raise typer.Exit(2)


def _tasks(table: str, task: str) -> list[TableTask]:
    from harness.table_task import TableTask

    if table.endswith(".toml"):
        from harness.trials.suite import read_suite

        found = [made for made in read_suite(table).tasks if isinstance(made, TableTask)]
        if not found:
            raise UserError(
                f"{table} has no task that is a table", "name a table, or a suite with choices, ratings or votes"
            )
        return found
    found = registry.make_instance("task", task or "choices", {"file": table})
    if not isinstance(found, TableTask):
        raise UserError(f"the task {task} is not made of a table", "name choices, ratings, votes or a preset")
    return [found] if task else [_with_guessed_fields(found)]


def _with_guessed_fields(task: TableTask) -> TableTask:
    """Return the task that the table's columns suggest; `choices` with its own fields where they suggest none."""
    from harness.sources.described import guess_fields

    guess = guess_fields(task.read())
    return registry.make_instance("task", guess[0], {"file": task.file} | guess[1]) if guess else task


def _description(task: TableTask) -> dict[str, Any]:
    from harness.sources.described import describe_columns

    table = task.read()
    told: dict[str, Any] = {"source": task.source, "rows": len(table), "columns": describe_columns(table)}
    told |= {"task": task.name, "fields": _suggested(task), "problem": None, "hint": None, "notes": []}
    try:
        with error_prefix(task.source):
            told |= _numbers(task, table)
    except UserError as error:
        told |= {"problem": error.message, "hint": error.hint}
    return told


def _suggested(task: TableTask) -> dict[str, Any]:
    """Return the fields of a task that are not its defaults."""
    from harness.fields import field_values

    default = field_values(type(task)())
    return {name: value for name, value in field_values(task).items() if value != default[name]}


def _numbers(task: TableTask, table: Any) -> dict[str, Any]:
    import numpy as np

    from harness.learning.form import form_accuracy
    from harness.sources.described import describe_answers, describe_pairs
    from harness.trials.prepare import MAX_FORM_ACCURACY

    judged, notes = task.judgements(table)
    if "chosen" in judged.columns:
        numbers = describe_pairs(judged)
        numbers["form"] = form_accuracy(*judged.filter(judged["label"] > 0.5)["chosen", "rejected", "user"])
        if (numbers["form"] or 0) > MAX_FORM_ACCURACY and not task.form_matters:
            notes.append(
                f"warning: form alone tells the chosen response in {numbers['form']:.1%} of pairs. Chosen and rejected "
                "responses may be stored in different ways: `manyminds check` tells more"
            )
    elif "agrees" in judged.columns:
        numbers = describe_answers(judged, "agrees", "statement")
    elif "rating" in judged.columns:
        numbers = describe_answers(judged, "rating", "item" if "item" in judged.columns else "response")
    else:
        return {"notes": notes}
    counts = judged.group_by("user").len()["len"].to_numpy()
    asked = counts - np.minimum(task.queries, np.maximum(counts // 3, 2)) if "rating" in judged.columns else counts - 1
    numbers["askable"] = int((asked >= max(task.shots)).sum())
    if numbers["askable"] < FEWEST_ASKED and len(counts) > numbers["askable"]:
        notes.append(
            f"warning: {numbers['askable']:,} people have enough answers to be asked after {max(task.shots)}; with smaller "
            "numbers in the field shots more people can be asked"
        )
    return {"numbers": numbers, "notes": notes}


def _print_description(told: dict[str, Any]) -> None:
    print(f"{told['source']}: {told['rows']:,} rows\n")
    rows = [("column", "type", "missing", "different", "example")]
    for c in told["columns"]:
        different = "" if c["different"] is None else f"{c['different']:,}"
        rows.append((c["name"], c["type"], f"{c['missing']:,}", different, c["example"].replace("\n", " ")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\n[[tasks]]")
    print(f'name = "{told["task"]}"')
    for name, value in told["fields"].items():
        print(f"{name} = {json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}")
    print('\n[[methods]]\nname = "mixed_logit"')
    print()
    for name, words in NUMBERS.items():
        value = told.get("numbers", {}).get(name)
        if value is not None:
            print(f"{words}: {_spelled_out(name, value)}")
    for note in told["notes"]:
        print(note)
    if told["problem"]:
        print(f"problem: {told['problem']}\n\nhint: {told['hint']}")


def _spelled_out(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:,}" if name == "values" else f"{v:,} ({k})" for k, v in value.items())
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
