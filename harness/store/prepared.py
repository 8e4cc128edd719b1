"""Prepared tasks, read from the store by memory-mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from harness.data import Items, Pairs, Panel, Splits, Truth
from harness.errors import UserError
from harness.store.store import Store

PAIR_COLUMNS = ("user", "people", "left", "right", "label", "seconds", "row", "ratings")


@dataclass(frozen=True, eq=False)
class PreparedTask:
    """A prepared task as a worker uses it: its splits and its ground truth, memory-mapped."""

    splits: Splits
    truth: Truth | None


def person_numbers(store: Store, manifests: Sequence[Mapping]) -> list[np.ndarray]:
    """Return int64[people] for each manifest: a number for each person, the same wherever that person occurs.

    manifests: one prepared build of the same task per seed; their order decides the numbers. A simulator that draws new
    people under each seed gets new numbers. A data set of fixed people, of which seeds draw different pairs, does not.
    """
    populations = dict.fromkeys(manifest["facts"]["population"] for manifest in manifests)
    counts = [manifest["facts"]["people"] for manifest in manifests]
    if len(populations) == 1:
        return [np.arange(count) for count in counts]
    ids = [person_ids(store, manifest) for manifest in manifests]
    _, first, who = np.unique(np.concatenate(ids), return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))  # in the order in which people first occur
    return np.split(number[who], np.cumsum(counts)[:-1])


def person_ids(store: Store, manifest: Mapping) -> np.ndarray:
    """Return int64[people]: for each person of a prepared task a number that the same person has in all builds of it."""
    if "persons.npy" not in manifest["files"]:  # prepared before people had digests: known within one population
        return np.arange(manifest["facts"]["people"]) + int(manifest["facts"]["population"][:7], 16) * 2**32
    return (np.load(store.verified_path(manifest, "persons.npy")) >> 1).astype(np.int64)


def open_prepared_task(store: Store, key: str) -> PreparedTask:
    """Open the prepared task with that key. Raises UserError where the task is not prepared."""
    manifest = store.read_manifest("tasks", key)
    if manifest is None:
        raise UserError(f"the task {key} is not prepared in {store.root}", "run `manyminds prepare SUITE`")

    def load(name: str) -> Any:
        """Load an array, or return None where there is none: seconds, features and ground truth are optional."""
        return (
            np.load(store.verified_path(manifest, f"{name}.npy"), mmap_mode="c")
            if f"{name}.npy" in manifest["files"]
            else None
        )

    def table(name: str) -> pa.Table | None:
        if f"{name}.arrow" not in manifest["files"]:
            return None
        return pa.ipc.open_file(pa.memory_map(str(store.verified_path(manifest, f"{name}.arrow")))).read_all()

    profiles, names = table("profiles"), table("names")
    profiles = None if profiles is None else profiles["profile"].combine_chunks()
    items = Items(load("features"), table("text"), names=None if names is None else names["name"].combine_chunks())
    parts = sorted({name.rpartition(".")[0].rpartition(".")[0] for name in manifest["files"] if ".user." in name})
    pairs = {
        part: Pairs(**{c: load(f"{part}.{c}") for c in PAIR_COLUMNS}, items=items, profiles=profiles) for part in parts
    }
    panels = {
        name: Panel(pairs[f"{name}/context"], pairs[f"{name}/query"], load(f"{name}.choices"))
        for name in sorted({part.partition("/")[0] for part in parts} - {"train"})
    }
    truth = None
    if manifest["facts"]["has_truth"]:
        truth = Truth(
            load("truth.users"), load("truth.items"), float(load("truth.temperature")), load("truth.population")
        )
    return PreparedTask(Splits(pairs["train"], panels), truth)
