"""A trial: one task, one method, one seed, and the permanent key of its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from harness.fields import identity_fields, name_at_version
from harness.store.store import identity_hash

if TYPE_CHECKING:
    from harness.method import Method
    from harness.task import Task

# Raised whenever the same trial would get another key. tests/trials/test_trial.py pins the keys of each version.
KEY_VERSION = 2


def task_identity(task: Task, seed: int) -> dict[str, object]:
    """Return what determines the content of a prepared task; known before anything is built."""
    identity = {
        "key_version": KEY_VERSION,
        "task": name_at_version(task),
        "task_fields": identity_fields(task),
        "seed": seed,
    }
    return identity | ({"files": files} if (files := task.files_digest()) else {})


@dataclass(frozen=True)
class Trial:
    """One method, fitted once on one task and seed, and scored at every number of shots on every panel.

    Every field but `task_key` is part of the identity. How and where a trial ran (code state, device, seconds, ...) are
    facts, listed in `harness.trials.facts.FACT_NAMES` and stored beside the result.
    """

    task: Task
    method: Method
    seed: int
    data: str  # digest of the prepared task
    task_key: str = field(compare=False)  # key of the prepared task in the store; `data` stands for it in the identity

    @cached_property
    def identity(self) -> dict[str, object]:
        """What determines the result."""
        return {
            "key_version": KEY_VERSION,
            "task": name_at_version(self.task),
            "task_fields": identity_fields(self.task),
            "data": self.data,
            "method": name_at_version(self.method),
            "method_fields": identity_fields(self.method),
            "seed": self.seed,
        }

    @cached_property
    def key(self) -> str:
        """Hash of the identity: the name of the result in the store."""
        return identity_hash(self.identity)
