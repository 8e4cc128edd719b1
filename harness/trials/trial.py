"""Trial: one task, one method, one seed, and the key that names its result for ever."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from harness.store.store import hashed

if TYPE_CHECKING:
    from harness.method import Method
    from harness.task import Task

KEY_VERSION = (
    2  # raised whenever the same trial would get another key; tests/trials/test_trial.py pins keys per version
)


def name_at_version(thing: Task | Method) -> str:
    return f"{thing.name}@{type(thing).version}"


def fields_of(thing: Task | Method) -> dict[str, object]:
    return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}


def identity_of(thing: Task | Method) -> dict[str, object]:
    """The fields. Those declared with metadata={"identity": False} are left out: paths, whose content `files_digest`
    names. A function there says what counts of a value: a model's content instead of its folder, say.
    """
    found = fields_of(thing)
    for declared in dataclasses.fields(thing):
        counts = declared.metadata.get("identity", True)
        if counts is False:
            del found[declared.name]
        elif counts is not True:
            found[declared.name] = counts(found[declared.name])
    return found


def task_identity(task: Task, seed: int) -> dict[str, object]:
    """What decides the content of a prepared task, known before anything is built."""
    identity = {
        "key_version": KEY_VERSION,
        "task": name_at_version(task),
        "task_fields": identity_of(task),
        "seed": seed,
    }
    return identity | ({"files": files} if (files := task.files_digest()) else {})


@dataclass(frozen=True)
class Trial:
    """Fitted once, judged at every number of shots on every panel.

    Every field here but `task_key` is identity. How and where a trial ran (code state, device, seconds, ...) are facts, listed in
    `harness.trials.facts.FACTS` and stored beside the result.
    """

    task: Task
    method: Method
    seed: int
    data: str  # digest of the prepared task
    task_key: str = field(compare=False)  # where the store keeps the prepared task: no identity, `data` is

    @cached_property
    def identity(self) -> dict[str, object]:
        return {
            "key_version": KEY_VERSION,
            "task": name_at_version(self.task),
            "task_fields": identity_of(self.task),
            "data": self.data,
            "method": name_at_version(self.method),
            "method_fields": identity_of(self.method),
            "seed": self.seed,
        }

    @cached_property
    def key(self) -> str:
        return hashed(self.identity)
