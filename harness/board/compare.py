"""Two sides of finished trials, compared pair by pair: two stores (such as of two commits), two suites or two methods."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from harness.board.board import Point
from harness.board.results import load_scores
from harness.errors import UserError
from harness.scores.stats import paired_differences
from harness.store.prepared import person_numbers
from harness.store.store import Store

PANEL = "test"
RecordedSetting = tuple[str, str]  # a task's or method's name, and its fields as JSON


@dataclass(frozen=True, eq=False)
class RecordedTrial:
    """A finished trial as its store tells it; its task and method need not be installed, nor have the same version."""

    store: Store
    task_key: str
    manifest: dict

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.manifest["identity"]["seed"])

    @property
    def data(self) -> str:
        """Digest of the prepared data: trials with the same one asked the same people the same."""
        return str(self.manifest["identity"]["data"])

    @property
    def version(self) -> tuple[int, int]:
        """Version of the method, and of the keys."""
        told = self.manifest["identity"]
        return int(told["method"].partition("@")[2] or 1), int(told.get("key_version", 1))

    def setting(self, kind: str) -> RecordedSetting:
        """Return the setting of its `task` or `method`, without the version."""
        told = self.manifest["identity"]
        return told[kind].partition("@")[0], json.dumps(told[f"{kind}_fields"], sort_keys=True)


@dataclass(frozen=True)
class ComparedRow:
    """One method on one task, or two methods, on both sides: accuracies at the largest number of shots that both have."""

    task: str
    method: str
    shots: int
    people: int
    seeds: int
    before: float
    after: float
    difference: Point  # after - before, paired over people and seeds; the limits hold for this row alone
    p: float | None  # adjusted over all rows that differ, by Holm's method; None for the others and without intervals
    better: float  # share of people with a higher accuracy on the second side
    worse: float


@dataclass(frozen=True)
class Comparison:
    """All rows, the largest loss first, and the settings that only one side has or that are not the same data."""

    rows: tuple[ComparedRow, ...]
    unmatched: tuple[str, ...]

    def surely(self, sign: int) -> list[ComparedRow]:
        """Return the rows that are surely better (sign 1) or worse (-1): adjusted p below .05."""
        return [row for row in self.rows if row.p is not None and row.p < 0.05 and row.difference.value * sign > 0]


def finished_trials(store: Store, keys: Iterable[str] | None = None) -> list[RecordedTrial]:
    """Return the finished trials of a store, or those with the given keys; of several versions of a method the latest."""
    tasks = {}
    for key in store.committed_keys("tasks"):
        if manifest := store.read_manifest("tasks", key):
            tasks[manifest["facts"]["data"]] = key
    found = []
    for key in sorted(store.committed_keys("trials") if keys is None else keys):
        manifest = store.read_manifest("trials", key)
        if manifest and manifest["identity"]["data"] in tasks:
            found.append(RecordedTrial(store, tasks[manifest["identity"]["data"]], manifest))
    return latest_versions(found)


def latest_versions(trials: list[RecordedTrial]) -> list[RecordedTrial]:
    """Return of trials with the same data, seed and setting the one of the latest version of the method and of the keys."""
    latest: dict[tuple, RecordedTrial] = {}
    for trial in trials:
        place = trial.data, trial.seed, trial.setting("method")
        if place not in latest or latest[place].version < trial.version:
            latest[place] = trial
    return list(latest.values())


def with_method(trials: list[RecordedTrial], name: str, fields: dict) -> list[RecordedTrial]:
    """Return the trials of a method whose fields have the given values."""
    own = [t for t in trials if t.setting("method")[0] == name]
    return [t for t in own if all(t.manifest["identity"]["method_fields"].get(k) == v for k, v in fields.items())]


def compare_trials(before: list[RecordedTrial], after: list[RecordedTrial], any_method: bool = False) -> Comparison:
    """Compare trials of the same data and seed on both sides.

    any_method: each side has one method, and they are compared with each other. Otherwise a method is compared with the
    setting of the same name whose fields agree most, since a later version may have other fields or defaults.

    Raises UserError where the sides share no data, and where a side has several settings of the one method.
    """
    settings = [list(dict.fromkeys(t.setting("method") for t in side)) for side in (before, after)]
    if any_method:
        for side in settings:
            if len(side) > 1:
                raise UserError(
                    f"{side[0][0]} has {len(side)} settings: " + "; ".join(compared_labels(side).values()),
                    "name one, for example 'lore?weights=free'",
                )
        matched = dict(zip(*settings, strict=False))
    else:
        matched = matched_settings(*settings)
    labels = [compared_labels(side) for side in settings]
    found: dict[tuple[RecordedSetting, RecordedSetting], list[tuple[RecordedTrial, RecordedTrial]]] = {}
    there = {(t.data, t.seed, t.setting("method")): t for t in after}
    for trial in before:
        own = trial.setting("method")
        if own in matched and (other := there.get((trial.data, trial.seed, matched[own]))):
            found.setdefault((other.setting("task"), own), []).append((trial, other))
    if not found:
        raise UserError(
            "the two sides have no finished trials of the same method on the same data",
            "compare runs of the same tasks and seeds; `manyminds board SUITE` shows what is finished",
        )
    tasks = compared_labels([task for task, _ in found])
    rows = [
        _compared_row(tasks[task], _pair_label(own, matched[own], *labels), pairs)
        for (task, own), pairs in found.items()
    ]
    adjusted = holm([row[1] for row in rows])
    told = [ComparedRow(**row[0], p=p) for row, p in zip(rows, adjusted, strict=True)]
    used = {id(trial) for pairs in found.values() for pair in pairs for trial in pair}
    left = [[trial for trial in side if id(trial) not in used] for side in (before, after)]
    unmatched = [
        line
        for i, side in enumerate((before, after))
        for line in _describe_unmatched(("first", "second")[i], side, left[i], left[1 - i])
    ]
    return Comparison(tuple(sorted(told, key=lambda row: row.difference.value)), tuple(unmatched))


def matched_settings(
    before: list[RecordedSetting], after: list[RecordedSetting]
) -> dict[RecordedSetting, RecordedSetting]:
    """Return for each setting of the first side its counterpart: of the same name, with the most equal fields."""

    def alike(a: RecordedSetting, b: RecordedSetting) -> int:
        one, other = json.loads(a[1]), json.loads(b[1])
        return sum(other.get(name) == value for name, value in one.items())

    pairs = sorted(((a, b) for a in before for b in after if a[0] == b[0]), key=lambda pair: -alike(*pair))
    matched: dict[RecordedSetting, RecordedSetting] = {}
    for a, b in pairs:
        if a not in matched and b not in matched.values():
            matched[a] = b
    return matched


def compared_labels(settings: list[RecordedSetting], but: Collection[str] = ()) -> dict[RecordedSetting, str]:
    """Return a label for each setting of a method or task: its name, and the fields in which settings of the name differ.

    but: fields that are left out.
    """
    fields = {setting: json.loads(setting[1]) for setting in settings}
    labels = {}
    for setting in settings:
        alike = [fields[other] for other in settings if other[0] == setting[0]]
        varied = [
            f"{k}={v}" for k, v in fields[setting].items() if k not in but and any(other.get(k) != v for other in alike)
        ]
        labels[setting] = f"{setting[0]}({', '.join(varied)})" if varied else setting[0]
    return labels


def _pair_label(
    before: RecordedSetting,
    after: RecordedSetting,
    labels: dict[RecordedSetting, str],
    others: dict[RecordedSetting, str],
) -> str:
    """Return one label for a setting and its counterpart, which says in what they differ, such as `pref, rank 8 -> None`."""
    if before[0] != after[0]:
        return f"{labels[before]} -> {others[after]}"
    old, new = json.loads(before[1]), json.loads(after[1])
    varied = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    if not varied:
        return labels[before]
    changed = [f"{name} {old[name]} -> {new[name]}" for name in sorted(varied)]
    return ", ".join([compared_labels(list(labels), varied)[before], *changed])


def _compared_row(task: str, method: str, pairs: list[tuple[RecordedTrial, RecordedTrial]]) -> tuple[dict, float]:
    """Return the fields of a row, and the p-value of its difference alone; NaN without standard errors or differences."""
    pairs = sorted(pairs, key=lambda pair: pair[0].seed)
    manifests = [other.store.read_manifest("tasks", other.task_key) for _, other in pairs]
    numbers = person_numbers(pairs[0][1].store, [m for m in manifests if m is not None])
    tables = []
    for (one, other), number in zip(pairs, numbers, strict=True):
        sides = [
            load_scores(t.store, t.task_key, t.manifest)
            .filter(pl.col("panel") == PANEL, pl.col("swapped").not_())
            .select("person", "shots", "accuracy")
            for t in (one, other)
        ]
        both = sides[0].join(sides[1], on=["person", "shots"], suffix="_after")
        person = pl.Series("person", number[both["person"].to_numpy()])
        tables.append(both.with_columns(person, seed=pl.lit(one.seed)))
    cells = pl.concat(tables)
    cells = cells.filter(pl.col("shots") == cells["shots"].max()).sort("seed", "person")
    values = np.stack([cells["accuracy"].to_numpy(), cells["accuracy_after"].to_numpy()])
    told = paired_differences(values, cells["person"].to_numpy(), cells["seed"].to_numpy())
    low, high = (float(edge[1, 0]) for edge in np.clip(told.interval(), -1, 1))
    own = cells.group_by("person").agg((pl.col("accuracy_after") - pl.col("accuracy")).mean().alias("gain"))
    gain = own["gain"].to_numpy()
    equal = told.note or not np.ptp(values, axis=0).any()
    fields = {
        "task": task,
        "method": method,
        "shots": int(cells["shots"][0]),
        "people": len(gain),
        "seeds": len(pairs),
        "before": float(values[0].mean()),
        "after": float(values[1].mean()),
        "difference": Point(float(told.value[1, 0]), None if told.note else low, None if told.note else high),
        "better": float(np.mean(gain > 1e-12)),
        "worse": float(np.mean(gain < -1e-12)),
    }
    return fields, np.nan if equal else float(told.p_values()[1, 0])


def holm(p: list[float]) -> list[float | None]:
    """Return p-values adjusted by Holm's method; None for NaN, which is not counted."""
    known = [i for i in np.argsort(p) if np.isfinite(p[i])]
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    for place, i in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


def _describe_unmatched(
    word: str, side: list[RecordedTrial], left: list[RecordedTrial], others: list[RecordedTrial]
) -> list[str]:
    """Return a line for each task and method of a side with trials that have no counterpart, and why.

    left, others: the trials without a counterpart, of this side and of the other one.
    """
    tasks, methods = (compared_labels([t.setting(kind) for t in side]) for kind in ("task", "method"))
    there = {(t.setting("task")[0], t.setting("method")[0], t.seed) for t in others}
    seeds: dict[str, list[int]] = {}
    for t in left:
        alike = (t.setting("task")[0], t.setting("method")[0], t.seed) in there
        why = "other data or another setting than on the other side" if alike else f"only on the {word} side"
        what = f"{methods[t.setting('method')]} on {tasks[t.setting('task')]}"
        seeds.setdefault(f"{what}: {why}", []).append(t.seed)
    return [f"{line} ({len(own)} seed{'s' if len(own) > 1 else ''})" for line, own in seeds.items()]
