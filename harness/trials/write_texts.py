"""Texts that a policy writes for the test people, beside those of its reference model."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from harness.data import Panel
from harness.method import GENERATED_SCHEMA, Predictor, Run, State, Users, equal_users
from harness.trials.outputs import checked_generated

# With two numbers of shots and the reference model these are 40 * 12 * 3 = 1440 texts. One core writes 800 tokens a
# second, and needs two minutes.
MAX_PEOPLE, MAX_PROMPTS = 40, 12
REFERENCE_SHOTS = -1  # in place of a number of shots: marks the texts of the model that the policy started from


def write_texts(
    name: str, predictor: Predictor, state: State, adapted: dict[int, Users], panel: Panel, run: Run
) -> tuple[pa.Table | None, float | None]:
    """Write texts to the first people and prompts, by the reference model and by the policy at each number of shots.

    Return the texts and the tokens written per second, or (None, None) for a task without texts or candidates. Columns:
    shots (int32, REFERENCE_SHOTS for the reference model), person, prompt (row of the panel's choices), and those of
    GENERATED_SCHEMA. Rows are ordered by shots, then person, then prompt.
    """
    texts, people = panel.query.items.text, panel.query.people[:MAX_PEOPLE]
    if texts is None or panel.choices is None:
        return None, None
    prompts = texts["prompt"].take(pa.array(panel.choices[:MAX_PROMPTS, 0])).to_pylist()
    user = np.repeat(np.arange(len(people), dtype=np.int32), len(prompts))
    place = np.tile(np.arange(len(prompts), dtype=np.int32), len(people))
    asked, tokens, began = [prompts[p] for p in place], 0, time.perf_counter()
    found: dict[int, pa.Table] = {}
    for shots, users in ({REFERENCE_SHOTS: None} | adapted).items():
        if users is not None and (
            alike := [n for n in found if n != REFERENCE_SHOTS and equal_users(users, adapted[n])]
        ):
            found[shots] = found[alike[0]]
            continue
        found[shots] = checked_generated(
            predictor.generate(state, users, user, asked, run), len(user), f"{name}.generate"
        )
        tokens += int(found[shots]["n_tokens"].to_numpy().sum())
    speed = tokens / (time.perf_counter() - began)
    head = {"person": people[user], "prompt": place}
    parts = [
        pa.table(
            {"shots": np.full(len(user), shots, np.int32)}
            | head
            | dict(zip(GENERATED_SCHEMA.names, made.columns, strict=True))
        )
        for shots, made in found.items()
    ]
    return pa.concat_tables(parts), speed
