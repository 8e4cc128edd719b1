"""Numbers of finished trials that claims select."""

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
from harness.method import Method
from harness.store.store import Store
from harness.task import Task
from harness.trials.plan import Plan
from harness.trials.suite import Suite
from harness.trials.trial import Trial, field_values, recorded_values

WRITTEN_PREFIX = "written_"  # before the name of a column of text_worth.outcomes, in a metric


@dataclass(frozen=True, eq=False)
class SelectedValues:
    """A number for every seed, and where it is a score one for every cell (a person under a seed)."""

    seeds: np.ndarray
    value: np.ndarray
    cells: pl.DataFrame | None = None  # person, seed, value

    @classmethod
    def of_cells(cls, cells: pl.DataFrame) -> SelectedValues:
        means = cells.group_by("seed").agg(pl.col("value").mean()).sort("seed")
        return cls(means["seed"].to_numpy(), means["value"].to_numpy(), cells)


def paired_difference(a: SelectedValues, b: SelectedValues) -> SelectedValues:
    """a - b, cell by cell where both have the same ones, and else seed by seed.

    Panels that hold the same people under different seeds, as the folds of a data set do, are paired over people and
    over seeds: a cell of the smaller panel stands against the person's mean on the larger, taken as if each seed were
    as easy as the others, plus what the cell's own seed adds there (tests/claims/test_claims.py has the coverage).
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
    """Why there is no number."""


@dataclass(frozen=True, eq=False)
class Results:
    """The finished trials of a plan, read once."""

    plan: Plan
    store: Store
    tables: dict[str, pl.DataFrame] = field(default_factory=dict)  # by trial

    @classmethod
    def of_unrun_suite(cls, suite: Suite) -> Results:
        """Of a suite of which nothing has run: for checking what claims select of it. No store is read."""
        return cls(Plan(suite, (), (), {}), Store(Path()))

    @property
    def suite(self) -> Suite:
        return self.plan.suite

    def matching_settings(self, kind: str, wanted: Any) -> list:
        """The suite's task or method settings that a name, or a table of a name and some fields, fits."""
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
            raise UserError(f"it selects the {kind} {wanted!r}, which the suite does not have", hint)
        return fits

    def single_setting(self, kind: str, wanted: Any) -> Any:
        """The setting that fits; of several of one name, that with all defaults."""
        fits = self.matching_settings(kind, wanted)
        if len(fits) > 1:
            plain = [x for x in fits if field_values(x) == field_values(type(x)())]
            if len(plain) != 1 or len({x.name for x in fits}) > 1:
                told = f"it selects the {kind} {wanted!r}, which" if wanted is not None else f"it names no {kind}, and"
                raise UserError(f"{told} fits {len(fits)} {kind} settings", f"add a field to `{kind}`")
            fits = plain
        return fits[0]

    def task_and_method(self, selection: Selection) -> tuple[Task, Method]:
        """The one task and method selected. Raises UserError where there is none, or the task has no such shots."""
        task, method = self.single_setting("task", selection.task), self.single_setting("method", selection.method)
        if selection.shots not in (None, *task.shots):
            raise UserError(f"{task.name} has no {selection.shots} shots", f"its shots: {list(task.shots)}")
        return task, method

    def selected_values(self, selection: Selection) -> SelectedValues:
        """Raises NoNumberError where a trial is missing, or has no such number."""
        if selection.less:
            *before, last = selection.less
            whole = replace(selection, less=tuple(before))
            return paired_difference(self.selected_values(whole), self.selected_values(replace(whole, **last)))
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
        """By seed. Raises NoNumberError where the method sits the task out."""
        found = sorted((t for t in self.plan.trials if t.task == task and t.method == method), key=lambda t: t.seed)
        if not found:
            reason = next((r.reason for r in self.plan.refusals if r.task == task and r.method == method), "not in it")
            raise NoNumberError(f"{method.name} sits out {task.name}: {reason}")
        return found

    def trial_manifest(self, trial: Trial) -> dict:
        """Raises NoNumberError where the trial has no result."""
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
            raise NoNumberError(
                f"{trial.method.name} on {trial.task.name} has no {'curve' if kind == 'curves' else 'diagnostic'} {name!r}; it has: {known}"
            )
        return float(np.ravel(found[name])[-1])

    def person_cells(self, trials: list[Trial], selection: Selection, shots: int) -> pl.DataFrame:
        """The selected score of every person of the trials, one after the other: person, seed, value."""
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
                f"panel {selection.panel} of {trial.task.name} has no candidates of known, different worth"
            )
        known = table["n"].unique().sort().to_list()
        n = known[-1] if selection.n is None else selection.n
        if n not in known:
            raise NoNumberError(f"nothing was chosen among {n} candidates of {trial.task.name}, but among {known}")
        return self._with_distinct_people(table.filter(n=n, shots=shots).with_columns(seed=pl.lit(trial.seed)), trial)

    def _written_cells(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        self.trial_manifest(trial)
        table = None if selection.panel != "test" else text_worth.text_outcomes(self.store, trial)
        if table is None:
            raise NoNumberError(f"{trial.method.name} wrote nothing to panel {selection.panel} of {trial.task.name}")
        if selection.metric.removeprefix(WRITTEN_PREFIX) not in table.columns:
            raise NoNumberError(f"nobody knows the {selection.metric} of {trial.task.name}")
        if shots not in (known := table["shots"].unique().sort().to_list()):
            raise NoNumberError(f"nothing was written at {shots} shots of {trial.task.name}, but at {known}")
        return self._with_distinct_people(table.filter(shots=shots).with_columns(seed=pl.lit(trial.seed)), trial)

    def _score_cells(self, trial: Trial, selection: Selection, shots: int) -> pl.DataFrame:
        table, rows = self.score_table(trial), pl.col("panel") == selection.panel
        known = table.filter(rows)["shots"].unique().sort().to_list()
        if not known:
            panels = ", ".join(table["panel"].unique().sort())
            raise NoNumberError(f"{trial.task.name} has no panel {selection.panel}; it has: {panels}")
        if shots not in known:
            raise NoNumberError(
                f"people of panel {selection.panel} of {trial.task.name} have too few answers for {shots} shots"
            )
        value = 1 - pl.col("accuracy") if selection.metric == "error" else pl.col(selection.metric)
        found = table.filter(rows, shots=shots, swapped=False).select("person", seed=pl.lit(trial.seed), value=value)
        if found["value"].null_count():
            raise NoNumberError(f"nobody knows the {selection.metric} of {trial.task.name}")
        return found

    def score_table(self, trial: Trial) -> pl.DataFrame:
        """The trial's score table, with people of different worlds numbered apart."""
        if trial.key not in self.tables:
            self.tables[trial.key] = self._with_distinct_people(
                load_scores(self.store, trial, self.trial_manifest(trial)), trial
            )
        return self.tables[trial.key]

    def _with_distinct_people(self, table: pl.DataFrame, trial: Trial) -> pl.DataFrame:
        population = committed_manifest(self.store, "tasks", trial.task_key)["facts"]["population"]
        return table.with_columns(person=pl.col("person").cast(pl.Int64) + int(population[:7], 16) * 2**32)


def _same_value(ours: object, wanted: object) -> bool:
    return ours == (tuple(wanted) if isinstance(wanted, list) else wanted)
