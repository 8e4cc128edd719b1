"""Trials, and what workers need to know about them, as plain values: no class is pickled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.store.provenance import code_state
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.trials.trial import Trial

TRIAL_VARIABLES = (  # environment variables that workers get from the driver
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "MANYMINDS_CHECKPOINT_SECONDS",
    "MANYMINDS_CODE",
    "MANYMINDS_CRASH",
    "MANYMINDS_DATA",
    "MANYMINDS_SHARD",
)


def surroundings(store: Store, plugins: Sequence[str | Path]) -> dict:
    """Return where a worker finds the store and the plug-ins, and the environment variables that it needs."""
    environment = {n: os.environ[n] for n in TRIAL_VARIABLES if n in os.environ}
    return {
        "store": str(store.root),
        "plugins": [str(p) for p in plugins],
        "environment": environment | {"MANYMINDS_CODE": code_state()},
    }


def trial_as_dict(trial: Trial) -> dict:
    """Return the trial as plain values, from which a worker makes it again."""
    from harness.fields import field_values

    things = {
        kind: [thing.name, field_values(thing)] for kind, thing in (("task", trial.task), ("method", trial.method))
    }
    named = {"seed": trial.seed, "data": trial.data, "task_key": trial.task_key}
    return things | named | {"key": trial.key, "identity": trial.identity}


def trial_from_dict(spec: dict) -> Trial:
    """Return the trial that `trial_as_dict` described."""
    from harness import registry
    from harness.trials.trial import Trial

    return Trial(
        registry.make_instance("task", *spec["task"]),
        registry.make_instance("method", *spec["method"]),
        spec["seed"],
        spec["data"],
        spec["task_key"],
    )
