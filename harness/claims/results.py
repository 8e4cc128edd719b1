"""The results of finished trials that claims select."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from harness.board import best_of, text_worth
from harness.board.results import committed_manifest, load_scores
from harness.claims.schema import BEST_OF_N_METRICS, FACTS_OF_METRIC, Selection
from harness.errors import UserError, did_you_mean
from harness.fields import field_values, recorded_values
from harness.method import Method
from harness.store.prepared import person_ids
from harness.store.store import Store
from harness.task import Task
from harness.trials.plan import Plan
from harness.trials.suite import Suite
from harness.trials.trial import Trial

WRITTEN_PREFIX = "written_"  # a metric is this prefix and the name of a column of text_worth.text_outcomes


@dataclass(frozen=True, eq=False)
class SelectedValues:
    """A number for every seed; a score also has a number for every cell (a person under a seed)."""

    seeds: np.ndarray
    value: np.ndarray
    cells: pl.DataFrame | None = None  # person, seed, value

    @classmethod
    def of_cells(cls, cells: pl.DataFrame) -> SelectedValues:
        """Take each seed's mean over its cells as the seed's number."""
        means = cells.group_by("seed").agg(pl.col("value").mean()).sort("seed")
        return cls(means["seed"].to_numpy(), means["value"].to_numpy(), cells)


def paired_difference(a: SelectedValues, b: SelectedValues) -> SelectedValues:
    """Return a - b, cell by cell where both have the same cells, and seed by seed otherwise.

    Panels that hold the same people under different seeds, as the folds of a data set do, are paired over people and
    over seeds. A cell of the smaller panel is compared with the sum of two numbers from the larger one: the person's
    mean with the effects of seeds removed, and the effect of the cell's own seed. tests/claims/test_claims.py measures
    the coverage.
    """
    if a.cells is not None and b.cells is not None:
        both = a.cells.join(b.cells, on=["person", "seed"], suffix="_b", maintain_order="left")
        if len(both) == len(a.cells) == len(b.cells):
            return SelectedValues.of_cells(both.select("person", "seed", value=pl.col("value") - pl.col("value_b")))
        few, many, sign = (a.cells, b.cells, 1) if len(a.cells) < len(b.cells) else (b.cells, a.cells, -1)
        value, own = pl.col("value"), pl.col("own")
        many = many.with_columns(own=value - value.mean().over("person")).with_columns(own=own.mean().over("seed"))
        people = many.group_by("person").agg(mean=(value - own).mean())
        both = few.join(people, on="person", maintain_order="left")
        both = both.join(many.group_by("seed").agg(own.first()), on="seed", maintain_order="left")
        if len(both) == len(few):
            found = sign * (value - pl.col("mean") - own)
            return SelectedValues.of_cells(both.select("person", "seed", value=found))
    return SelectedValues(a.seeds, a.value - b.value)


class NoNumberError(Exception):
    """There is no number, for the reason in the message."""


@dataclass(frozen=True, eq=False)
class Results:
    """The finished trials of a plan, read once."""

    plan: Plan
    store: Store
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)  # score tables read so far, by the trial's key

    @classmethod
    def of_unrun_suite(cls, suite: Suite) -> Results:
        """Make the results of a suite that has not run, to check the selections of claims. No store is read."""
        return cls(Plan(suite, (), (), {}), Store(Path()))

    @property
    def suite(self) -> Suite:
        """The plan's suite."""
        return self.plan.suite

    def matching_settings(self, kind: str, wanted: Any) -> list:
        """Return the suite's task or method settings that match a name, or a table of a name and some fields.

        Raises UserError where none matches.
        """
        known: tuple[Any, ...] = self.suite.tasks if kind == "task" else self.suite.methods
        if wanted is None:
            return list(known)
        if wanted in known:
            return [wanted]
        name, settings = (wanted, {}) if isinstance(wanted, str) else (wanted.get("name"), dict(wanted))
        settings.pop("name", None)
        fits = [
            x
            for x in known
            if (name is None or x.name == name)
            and all(
                _same_value((recorded_values(x) | field_values(x)).get(k, Ellipsis), v) for k, v in settings.items()
            )
        ]
        if not fits:
            names = list(dict.fromkeys(x.name for x in known))
            every = f"its {kind}s: {', '.join(names)}"
            hint = every if name is None or name in names else did_you_mean(str(name), names, every)
            raise UserError(f"the selection names the {kind} {wanted!r}, which is not in the suite", hint)
        return fits

    def single_setting(self, kind: str, wanted: Any) -> Any:
        """Return the setting that matches; among several of one name, the one whose fields are all at their defaults.

        Raises UserError where none or several match.
        """
        fits = self.matching_settings(kind, wanted)
        if len(fits) > 1:
            default = [x for x in fits if field_values(x) == field_values(type(x)())]
            if len(default) != 1 or len({x.name for x in fits}) > 1:
                what = f"the {kind} {wanted!r}, which" if wanted is not None else f"no {kind}, and"
                raise UserError(
                    f"the selection names {what} matches {len(fits)} {kind} settings", f"add a field to `{kind}`"
                )
            fits = default
        return fits[0]

    def task_and_method(self, selection: Selection) -> tuple[Task, Method]:
        """Return the selected task and method. Raises UserError where there is none, or the task has no such shots."""
        task, method = self.single_setting("task", selection.task), self.single_setting("method", selection.method)
        if selection.shots not in (None, *task.shots):
            raise UserError(
                f"{task.name} is not scored at {selection.shots} shots", f"its numbers of shots: {list(task.shots)}"
            )
        return task, method

    def selected_values(self, selection: Selection) -> SelectedValues:
        """Return the selected numbers. Raises NoNumberError where a trial is missing or has no such number."""
        if selection.less:
            *before, last = selection.less
            minuend = replace(selection, less=tuple(before))
            return paired_difference(self.selected_values(minuend), self.selected_values(replace(minuend, **last)))
        task, method = self.task_and_method(selection)
        trials = self.trials_by_seed(task, method)
        kind, _, name = selection.metric.partition(":")
        if name:
            facts = [self._trial_fact(t, FACTS_OF_METRIC[kind], name) for t in trials]
            found = SelectedValues(np.array([t.seed for t in trials]), np.array(facts))
        else:
            shots = max(task.shots) if selection.shots is None else selection.shots
            found = SelectedValues.of_cells(self.person_cells(trials, selection, shots))
        if not np.isfinite(found.value).all():
            raise NoNumberError(f"{selection.metric} of {method.name} on {task.name} is not finite")
        return found

    def trials_by_seed(self, task: Task, method: Method) -> list[Trial]:
        """Return the method's trials on the task, ordered by seed. Raises NoNumberError where the method refuses it."""
        found = sorted((t for t in self.plan.trials if t.task == task and t.method == method), key=lambda t: t.seed)
        if not found:
            refusals = (r.reason for r in self.plan.refusals if r.task == task and r.method == method)
            raise NoNumberError(f"{method.name} does not run on {task.name}: {next(refusals, 'not in the plan')}")
        return found

    def trial_manifest(self, trial: Trial) -> dict:
        """Return the trial's manifest. Raises NoNumberError where the trial has no result."""
        found = self.store.read_manifest("trials", trial.key)
        if found is None:
            failure = self.store.read_failure(trial.key)
            why = f"failed: {failure['reason']}" if failure else "has not run"
            raise NoNumberError(f"{trial.method.name} on {trial.task.name}, seed {trial.seed}, {why}")
        return found

    def _trial_fact(self, trial: Trial, kind: str, name: str) -> float:
        found = self.trial_manifest(trial)["facts"].get(kind, {})
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            what = "curve" if kind == "curves" else "diagnostic"
            raise NoNumberError(f"{trial.method.name} on {trial.task.name} has no {what} {name!r}; it has: {known}")
        return float(np.ravel(found[name])[-1])

    def person_cells(self, trials: list[Trial], selection: Selection, shots: int) -> pl.DataFrame:
        """Return the selected score of every person of the trials: columns person, seed, value."""
        if selection.metric.startswith(WRITTEN_PREFIX):
            found = pl.concat([self._written_cells(trial, selection, shots) for trial in trials])
            return found.select("person", "seed", value=selection.metric.removeprefix(WRITTEN_PREFIX))
        if selection.metric not in BEST_OF_N_METRICS:
            return pl.concat([self._score_cells(trial, selection, shots) for trial in trials])
        found = pl.concat([self._best_of_n_cells(trial, selection, shots) for trial in trials])
        if selection.metric == "gain_of_n":
            value = best_of.normalised_gain(found["gain"].to_numpy(), found["room"].to_numpy())
            found = found.with_columns(gain_of_n=value)
        return found.select("person", "seed", value=selection.metric)

    def _best_of_n_cells(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        self.trial_manifest(trial)
        shared = None
        if selection.metric == "win_shared":
            shared = next(
                t
                for t in self.trials_by_seed(trial.task, self.single_setting("method", "shared"))
                if t.seed == trial.seed
            )
            self.trial_manifest(shared)
        table = None if selection.panel != "test" else best_of.best_of_n_outcomes(self.store, trial, shared)
        if table is None or cast(float, table["room"].mean()) <= 0:
            raise NoNumberError(
                f"panel {selection.panel} of {trial.task.name} has no candidates that are known to differ in worth"
            )
        known = table["n"].unique().sort().to_list()
        n = known[-1] if selection.n is None else selection.n
        if n not in known:
            raise NoNumberError(f"{trial.task.name} has no choices among {n} candidates; it has choices among {known}")
        return self._with_distinct_people(table.filter(n=n, shots=shots).with_columns(seed=pl.lit(trial.seed)), trial)

    def _written_cells(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        self.trial_manifest(trial)
        table = None if selection.panel != "test" else text_worth.text_outcomes(self.store, trial)
        if table is None:
            raise NoNumberError(f"{trial.method.name} wrote no texts for panel {selection.panel} of {trial.task.name}")
        if selection.metric.removeprefix(WRITTEN_PREFIX) not in table.columns:
            raise NoNumberError(f"{selection.metric} is unknown: {trial.task.name} has no ground truth for it")
        if shots not in (known := table["shots"].unique().sort().to_list()):
            raise NoNumberError(f"no texts were written at {shots} shots of {trial.task.name}, only at {known}")
        return self._with_distinct_people(table.filter(shots=shots).with_columns(seed=pl.lit(trial.seed)), trial)

    def _score_cells(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        table, rows = self.score_table(trial), pl.col("panel") == selection.panel
        known = table.filter(rows)["shots"].unique().sort().to_list()
        if not known:
            panels = ", ".join(table["panel"].unique().sort())
            raise NoNumberError(f"{trial.task.name} has no panel {selection.panel}; it has: {panels}")
        if shots not in known:
            raise NoNumberError(
                f"some people in panel {selection.panel} of {trial.task.name} have too few answers for {shots} shots"
            )
        value = 1 - pl.col("accuracy") if selection.metric == "error" else pl.col(selection.metric)
        found = table.filter(rows, shots=shots, swapped=False).select("person", seed=pl.lit(trial.seed), value=value)
        if found["value"].null_count():
            raise NoNumberError(f"{selection.metric} is unknown: {trial.task.name} has no ground truth for it")
        return found

    def score_table(self, trial: Trial) -> pl.DataFrame:
        """Return the trial's score table, with different numbers for people of different populations."""
        if trial.key not in self.tables:
            self.tables[trial.key] = self._with_distinct_people(
                load_scores(self.store, trial.task_key, self.trial_manifest(trial)), trial
            )
        return self.tables[trial.key]

    def _with_distinct_people(self, table: pl.DataFrame, trial: Trial) -> pl.DataFrame:
        ids = person_ids(self.store, committed_manifest(self.store, "tasks", trial.task_key))
        return table.with_columns(person=pl.Series(ids[table["person"].to_numpy()], dtype=pl.Int64))


def _same_value(ours: object, wanted: object) -> bool:
    return ours == (tuple(wanted) if isinstance(wanted, list) else wanted)
