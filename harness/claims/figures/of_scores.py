"""Figures of scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.claims.figures.parts import (
    LINE_DASHES,
    ClaimFigure,
    MeasuredLine,
    PublishedNumbers,
    at_shots_text,
    capitalised,
    draw_lines,
    metric_name,
    selection_of,
    small_multiples,
    small_multiples_size,
)
from harness.claims.results import NoNumberError, Results
from harness.errors import UserError
from harness.fields import field_values
from harness.method import Method
from harness.report.plots import FIGURE_SIZE, add_legend, look_at_index
from harness.report.words import format_number
from harness.scores import stats
from harness.store.prepared import open_prepared_task
from harness.task import Task
from harness.trials import choose

if TYPE_CHECKING:
    from matplotlib import figure as mpl
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class ShotsFigure(ClaimFigure):
    """A metric against shots, a line per method; with several panels, each has its own dashes."""

    metric: str = "accuracy"  # the number that is drawn, as in a selection
    panels: tuple[str, ...] = ("test",)  # panels whose lines are drawn, each with its own dashes
    published: tuple[PublishedNumbers, ...] = ()  # numbers of a paper, drawn as marks

    def default_caption(self) -> str:
        where = (
            f" Hollow marks: panel {' and '.join(p for p in self.panels if p != 'test')}."
            if len(self.panels) > 1
            else ""
        )
        return f"{capitalised(metric_name(self.metric))} against shots, with 95 % bands over people and seeds.{where}"

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        axes, task = figure.subplots(), results.single_setting("task", self.task)
        place, lines, ranked = range(len(task.shots)), [], 0
        for method, label in self.chosen_methods(results).items():
            color, marker, dash = look_at_index(ranked)
            ranked += not method.privileged
            at = tuple((x, task, method, shots, None) for x, shots in zip(place, task.shots, strict=True))
            for panel, own in zip(self.panels, LINE_DASHES, strict=False):
                several = len(self.panels) > 1
                name, dash = (f"{label}, {panel}", own) if several else (label, "-" if method.privileged else dash)
                lines.append(MeasuredLine(name, (color, marker, dash), at, self.metric, panel))
        published = [(np.interp(t.shots, task.shots, place), t) for t in self.published]
        missing = draw_lines(axes, results, lines, published)
        axes.set_xticks(place, task.shots)
        axes.set_xlabel("shots: answers seen of each new user")
        add_legend(figure)
        return missing


@dataclass(frozen=True, kw_only=True)
class SweepFigure(ClaimFigure):
    """A metric against a field of tasks or methods that the suite sweeps.

    by: a second field; a line is drawn for each of its values.

    In a sweep of a method's field, methods that do not vary in this field are drawn as level lines.
    """

    field: str  # the swept field along the x axis
    metric: str = "accuracy"  # the number that is drawn, as in a selection
    by: str = ""  # a second field: a line for each of its values
    shots: int | None = None  # the largest where it is missing
    panel: str = "test"  # the panel whose people are scored
    log: bool = False  # a logarithmic x axis
    published: tuple[PublishedNumbers, ...] = ()  # numbers of a paper, drawn as marks

    def default_caption(self) -> str:
        what = capitalised(metric_name(self.metric)) + at_shots_text(self.metric, self.shots)
        return f"{what} against {self.field.replace('_', ' ')}, with 95 % bands."

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        missing = self.on(figure.subplots(), results)
        add_legend(figure)
        return missing

    def swept(self, methods: Iterable[Method]) -> list[Method]:
        """Return the methods whose name occurs with several values of the field."""
        seen: dict[str, set] = {}
        for method in methods:
            seen.setdefault(method.name, set()).add(field_values(method).get(self.field))
        return [m for m in methods if len(seen[m.name]) > 1]

    def value(self, setting: Task | Method) -> Any:
        """Return the setting's value of the field."""
        return field_values(setting)[self.field]

    def on(self, axes: Axes, results: Results) -> list[str]:
        """Draw the sweep on these axes, and return the reasons why points are missing."""
        tasks, methods = results.matching_settings("task", self.task), self.chosen_methods(results)
        of_task = len({field_values(t).get(self.field) for t in tasks}) > 1
        if not of_task:
            tasks = [results.single_setting("task", self.task)]
        swept: list[Task] | list[Method] = tasks if of_task else self.swept(methods)
        by_task = len({field_values(t).get(self.by) for t in tasks}) > 1
        values: list[Any] = sorted({self.value(s) for s in swept})
        if len(values) < 2:
            raise UserError(
                f"the field {self.field!r} has only one value in the suite",
                "give the field a list of values in the suite's task or method",
            )
        if self.by and not any(self.by in field_values(s) for s in [*tasks, *methods]):
            raise UserError(f"by = {self.by!r} is not a field of any task or method", "drop by")
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        place = {v: float(v) if numeric else float(i) for i, v in enumerate(values)}
        found: dict[tuple[str, object], list] = {}
        for task in tasks:
            for method, label in methods.items():
                other = field_values(task if by_task else method).get(self.by)
                level = not of_task and method not in swept
                # whether the line's label will contain the value of `by`, which then tells the method's settings apart
                by_tells_settings = not by_task and other is not None
                name = label if level or (of_task and not by_tells_settings) else method.name
                own = self.value(task if of_task else method) if not level else None
                line = found.setdefault((name, other), [])
                line += [(place[v], task, method, self.shots, None) for v in (values if level else [own])]
        lines, ranked = [], 0
        for (name, value), at in found.items():
            if len({x for x, *_ in at}) < len(at):
                raise UserError(
                    f"several settings of {name} have the same {self.field}",
                    "add fields to the figure's task and methods, or name a second field: by",
                )
            privileged = at[0][2].privileged
            by = "" if privileged else f"{self.by.replace('_', ' ')} "
            label = f"{name}, {by}{value}" if self.by and value is not None else name
            look_of = ("", "", "-") if privileged else look_at_index(ranked)
            lines.append(MeasuredLine(label, look_of, tuple(sorted(at, key=lambda p: p[0])), self.metric, self.panel))
            ranked += not privileged
        if self.log:
            axes.set_xscale("log")
        missing = draw_lines(axes, results, lines, [(t.x, t) for t in self.published])
        if not numeric or len(values) <= 8:
            axes.set_xticks(list(place.values()), [f"{v:g}" if numeric else str(v) for v in values])
            axes.minorticks_off()
        axes.set_xlabel(self.field.replace("_", " "))
        return missing


@dataclass(frozen=True, kw_only=True)
class CandidatesFigure(ClaimFigure):
    """A metric of the best of n candidates against n, a line per method."""

    metric: str = "gain_of_n"  # the number that is drawn, as in a selection
    shots: int | None = None  # the largest where it is missing

    def default_caption(self) -> str:
        what = capitalised(metric_name(self.metric)) + at_shots_text(self.metric, self.shots)
        return f"{what} against n, the number of candidates to choose from, with 95 % bands over people and seeds."

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        axes, task, lines, ranked = figure.subplots(), results.single_setting("task", self.task), [], 0
        methods = self.chosen_methods(results)
        trial = results.trials_by_seed(task, next(iter(methods)))[0]
        choices = open_prepared_task(results.store, trial.task_key).splits.panels["test"].choices
        if choices is None:
            raise NoNumberError(f"{task.name} has no candidates to choose from")
        counts = choose.candidate_counts(choices.shape[1])
        for method, label in methods.items():
            color, marker, dash = look_at_index(ranked)
            ranked += not method.privileged
            at = tuple((float(x), task, method, self.shots, n) for x, n in enumerate(counts))
            lines.append(MeasuredLine(label, (color, marker, "-" if method.privileged else dash), at, self.metric))
        missing = draw_lines(axes, results, lines)
        axes.set_xticks(range(len(counts)), [str(n) for n in counts])
        axes.set_xlabel("n: candidates to choose from")
        add_legend(figure)
        return missing


@dataclass(frozen=True, kw_only=True)
class SpreadFigure(ClaimFigure):
    """A metric's dot for every seed, with mean and standard deviation over seeds; a row per method."""

    metric: str = "accuracy"  # the number that is drawn, as in a selection
    shots: int | None = None  # the largest where it is missing
    panel: str = "test"  # the panel whose people are scored

    def size_inches(self, results: Results) -> tuple[float, float]:
        return FIGURE_SIZE[0], 1 + 0.42 * max(3, len(self.chosen_methods(results)))

    def default_caption(self) -> str:
        what = capitalised(metric_name(self.metric)) + at_shots_text(self.metric, self.shots)
        return f"{what}: a dot per seed; mean and standard deviation."

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        axes, task = figure.subplots(), results.single_setting("task", self.task)
        missing: list[str] = []
        rows: list[str] = []
        for method, label in self.chosen_methods(results).items():
            try:
                values = results.selected_values(selection_of(task, method, self.metric, self.panel, self.shots)).value
            except NoNumberError as why:
                missing.append(str(why))
                continue
            y, mean, sd = len(rows), values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
            color, marker, _ = look_at_index(y)
            # the dots are spread vertically, since equal values would hide each other
            apart = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else 0
            axes.plot(values, y + apart, color=color, marker=marker, ls="", ms=5, alpha=0.7)
            axes.errorbar(mean, y, xerr=sd, color="#000000", marker="|", ms=16, mew=2, capsize=4, lw=1.2)
            told = f"{format_number(mean)} ± {format_number(sd)}"
            axes.text(1.02, y, told, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
            rows.append(label)
        if not rows:
            raise NoNumberError("; ".join(dict.fromkeys(missing)))
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=metric_name(self.metric))
        axes.grid(axis="x", alpha=0.3)
        return missing


@dataclass(frozen=True, kw_only=True)
class SimplexFigure(ClaimFigure):
    """A metric against the share of one aspect in test users' true weights; a line per number of shots.

    Users of all seeds are grouped in ten bins of the share. Each method has a panel.
    """

    metric: str = "accuracy"  # the number that is drawn, as in a selection
    aspect: int = 0  # number of the aspect whose share stands on the x axis

    def size_inches(self, results: Results) -> tuple[float, float]:
        return small_multiples_size(len(self.chosen_methods(results)), 3.6)

    def default_caption(self) -> str:
        of = f"the share of aspect {self.aspect + 1} in a user's true weights"
        return (
            f"{capitalised(metric_name(self.metric))} against {of}, in tenths, with 95 % bands over people and seeds."
        )

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        task, missing, found = results.single_setting("task", self.task), [], []
        for method, label in self.chosen_methods(results).items():
            try:
                found.append((label, [self.read(results, task, method, n) for n in task.shots]))
            except NoNumberError as why:
                missing.append(str(why))
        if not found:
            raise NoNumberError("; ".join(dict.fromkeys(missing)))
        for axes, (label, lines) in zip(small_multiples(figure, len(found)), found, strict=True):
            for i, (shots, line) in enumerate(zip(task.shots, lines, strict=True)):
                x, value, low, high = line
                color, marker, dash = look_at_index(i)
                axes.plot(x, value, color=color, marker=marker, ls=dash, ms=5, label=f"{shots} shots")
                axes.fill_between(x, *np.clip((low, high), 0, 1), color=color, alpha=0.12, lw=0)
            axes.set(xlabel=f"share of aspect {self.aspect + 1}", ylabel=metric_name(self.metric), xlim=(0, 1))
            axes.set_title(label, fontsize=10)
        add_legend(figure, figure.axes[0].get_legend_handles_labels()[0])
        return missing

    def read(self, results: Results, task: Task, method: Method, shots: int) -> np.ndarray:
        """Return float[4, bins with users]: middle of the bin, mean, lower and upper limit."""
        trials, tenths = results.trials_by_seed(task, method), []
        found = results.person_cells(trials, selection_of(task, method, self.metric, "test", shots), shots)
        for trial in trials:
            prepared = open_prepared_task(results.store, trial.task_key)
            if prepared.truth is None:
                raise NoNumberError(f"{task.name} has no ground truth, so weights are unknown")
            weights = np.abs(prepared.truth.users[prepared.splits.panels["test"].query.people])
            tenths.append(np.minimum(10 * weights[:, self.aspect] / weights.sum(1), 9).astype(int))
        tenth = np.concatenate(tenths)  # of each person's share, 0..9
        person, seed, value = (found[c].to_numpy() for c in ("person", "seed", "value"))
        rows = []
        for i in np.unique(tenth):
            one = stats.estimate_means(value[None, tenth == i], person[tenth == i], seed[tenth == i])
            rows.append((i / 10 + 0.05, one.value[0], *(limit[0] for limit in one.interval())))
        return np.array(rows).T
