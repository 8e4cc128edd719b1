"""Examples of people: what three people of a task were shown and asked, and what every method expected them to answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import safetensors.numpy
from scipy.special import expit

from harness.board.board import REFERENCE_METHOD, SIMULATED, Board, Row, TaskBoard
from harness.board.results import committed_manifest, load_scores
from harness.data import Pairs
from harness.store.prepared import open_prepared_task, person_numbers
from harness.store.store import Store
from harness.task import Task

MAX_PAIRS = 4  # of a person that are shown, and of those that are asked


@dataclass(frozen=True)
class Choice:
    """One pair of options and the person's answer."""

    prompt: str
    preferred: str  # the option that the person prefers; of a tie the left one
    other: str
    tie: bool
    expected: dict[str, float]  # label of a method -> its probability of this answer; {} for a pair that it was shown


@dataclass(frozen=True)
class PersonExample:
    """One person under the suite's first seed."""

    person: int  # the number on the board
    why: str  # the person was chosen
    shown: tuple[Choice, ...]  # the first of the answers that methods had seen
    asked: tuple[Choice, ...]


def find_examples(board: Board, store: Store) -> dict[Task, tuple[PersonExample, ...]]:
    """Return for each task that is not simulated the people whom its first-ranked method serves best, so-so and worst."""
    found = {task.task: _examples_of_task(task, store) for task in board.tasks if task.task.family != SIMULATED}
    return {task: examples for task, examples in found.items() if examples}


def _examples_of_task(task: TaskBoard, store: Store) -> tuple[PersonExample, ...]:
    ranked = [row for row in task.rows if row.rank]
    first = next((row for row in ranked if row.worse is not None), None)
    if first is None or first.users is None:
        return ()
    builds = [committed_manifest(store, "tasks", key) for key in task.task_keys]
    number = person_numbers(store, builds)[0]
    panel = open_prepared_task(store, task.task_keys[0]).splits.panels["test"]
    user_of = {int(number[row]): user for user, row in enumerate(panel.query.people)}
    gains = first.users.filter(pl.col("person").is_in(list(user_of))).sort("gain", "person", descending=[True, False])
    shown = panel.context.first(task.shots)
    probabilities = {row.label: _probabilities(store, task, row) for row in ranked}
    examples: dict[int, PersonExample] = {}
    for place, what in ((0, "highest"), (len(gains) // 2, "middle"), (len(gains) - 1, "lowest")):
        person, gain = gains.select("person", "gain").row(place)
        why = f"{what} gain by {first.label} over {REFERENCE_METHOD}: {gain:+.3f}"
        told, answered = _choices(shown, user_of[person], {}), _choices(panel.query, user_of[person], probabilities)
        examples.setdefault(person, PersonExample(person, why, told, answered))
    return tuple(examples.values())


def _probabilities(store: Store, task: TaskBoard, row: Row) -> np.ndarray:
    """Return float64[queries of the test panel]: calibrated probabilities that left is preferred, under the first seed."""
    manifest = committed_manifest(store, "trials", row.keys[0])
    told = safetensors.numpy.load(bytes(store.read_verified(manifest, "predictions.safetensors")))
    scores = load_scores(store, task.task_keys[0], manifest).filter(panel="test", shots=task.shots, swapped=False)
    return expit(scores["scale"][0] * told[f"test/{task.shots}"].astype(np.float64))


def _choices(pairs: Pairs, user: int, probabilities: dict[str, np.ndarray]) -> tuple[Choice, ...]:
    """Return a user's first pairs. probabilities: that left is preferred, by method, for every pair."""
    start, stop = pairs.offsets[user : user + 2]
    found = []
    for i in range(start, min(stop, start + MAX_PAIRS)):
        left, right = int(pairs.left[i]), int(pairs.right[i])
        swap = bool(pairs.label[i] < 0.5)
        found.append(
            Choice(
                _prompt(pairs, left),
                _option(pairs, right if swap else left),
                _option(pairs, left if swap else right),
                bool(pairs.label[i] == 0.5),
                {label: float(1 - p[i] if swap else p[i]) for label, p in probabilities.items()},
            )
        )
    return tuple(found)


def _prompt(pairs: Pairs, item: int) -> str:
    return "" if pairs.items.text is None else pairs.items.text["prompt"][item].as_py() or ""


def _option(pairs: Pairs, item: int) -> str:
    """Return an item's text, its name, or its number."""
    if pairs.items.text is not None:
        return pairs.items.text["response"][item].as_py()
    return f"item {item}" if pairs.items.names is None else pairs.items.names[item].as_py()
