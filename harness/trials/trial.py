"""A trial: one task, one method, one seed, and the permanent key of its result."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from harness.fields import recorded_name
from harness.store.store import identity_hash

if TYPE_CHECKING:
    from harness.method import Method
    from harness.task import Task

# Raised whenever the same trial would get another key. tests/trials/test_trial.py pins the keys of each version.
KEY_VERSION = 2


def name_at_version(thing: Task | Method) -> str:
    """Return `name@version`."""
    return f"{thing.name}@{type(thing).version}"


def field_values(thing: Task | Method) -> dict[str, object]:
    """Return every field with its value."""
    return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}


def recorded_values(thing: Task | Method) -> dict[str, object]:
    """Return every field with its value, renamed fields under their first names: for hashes that must not change."""
    return {recorded_name(field): getattr(thing, field.name) for field in dataclasses.fields(thing)}


def identity_fields(thing: Task | Method) -> dict[str, object]:
    """Return the fields that are part of a key, under the names recorded in keys.

    A field declared with metadata={"identity": False} is left out, for example a path, since `files_digest` covers the
    file's content. If "identity" is a function, its value for the field is used: a model's content instead of its
    folder, for example.
    """
    found = recorded_values(thing)
    for declared in dataclasses.fields(thing):
        counts, name = declared.metadata.get("identity", True), recorded_name(declared)
        if counts is False:
            del found[name]
        elif counts is not True:
            found[name] = counts(found[name])
    return found


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
