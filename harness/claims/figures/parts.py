"""Shared parts of the figures of claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from harness.board.board import setting_labels
from harness.board.cells import METRIC_LIMITS
from harness.claims.measures import measure_check
from harness.claims.results import NoNumberError, Results
from harness.claims.schema import WIN_METRICS, Check, Selection
from harness.errors import UserError
from harness.fields import field_values
from harness.method import Method
from harness.report.plots import FIGURE_SIZE, PAGE_WIDTH, PlotLook, draw_grey_line, write_line_names
from harness.report.words import distinct_task_labels
from harness.task import Task
from harness.trials.trial import Trial

if TYPE_CHECKING:
    from matplotlib import figure as mpl
    from matplotlib.axes import Axes

LINE_DASHES = ("-", "--", ":", "-.")
METRIC_NAMES = {
    "auc": "AUC",
    "gain_of_n": "normalised gain",
    "win_random": "win rate over a random candidate",
    "win_shared": "win rate over the choice of shared",
}
# bands are cut to these limits
BAND_LIMITS = (
    METRIC_LIMITS | {"error": (0.0, 1.0), "gain_of_n": (-np.inf, 1.0)} | dict.fromkeys(WIN_METRICS, (0.0, 1.0))
)


@dataclass(frozen=True)
class PublishedNumbers:
    """Numbers of a paper, each with its number of shots or its x."""

    values: tuple[float, ...]  # the published numbers
    label: str = "published"  # the name in the legend
    shots: tuple[float, ...] = ()  # the number of shots of each value
    x: tuple[float, ...] = ()  # the position of each value on the x axis

    def __post_init__(self) -> None:
        if len(self.values) != len(self.shots + self.x):
            raise UserError(
                f"`published` has {len(self.values)} values, but {len(self.shots + self.x)} shots or x",
                "give `shots` or `x`, one for each value",
            )


@dataclass(frozen=True, kw_only=True)
class ClaimFigure:
    """A figure of a claim, with the fields and functions that all kinds share."""

    task: Any = None  # as in Selection
    methods: tuple[Any, ...] = ()  # selections of methods; without them, all methods of the suite
    caption: str = ""  # the text below the figure; without it, the default text of the figure's kind

    def size_inches(self, results: Results) -> tuple[float, float]:
        """Return the width and height in inches."""
        return FIGURE_SIZE

    def default_caption(self) -> str:
        """Return the caption for claims that give none."""
        raise NotImplementedError

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        """Draw the finished trials, and return the reasons why the rest is missing.

        Raises NoNumberError where nothing can be drawn.
        """
        raise NotImplementedError

    def chosen_methods(self, results: Results) -> dict[Method, str]:
        """Return every method setting to draw, with its label."""
        named: dict[Method, str] = {}
        for wanted in self.methods or (None,):
            label = wanted.get("label", "") if isinstance(wanted, dict) else ""
            wanted = {k: v for k, v in wanted.items() if k != "label"} if isinstance(wanted, dict) else wanted
            fits = results.matching_settings("method", wanted)
            named |= dict.fromkeys(fits, label if len(fits) == 1 else "")
        return {method: named[method] or label for method, label in setting_labels(list(named)).items()}


@dataclass(frozen=True)
class MeasuredLine:
    """A line of numbers to measure.

    at: for each point its x, task, method, number of shots and number of candidates (None: the largest number).
    """

    label: str
    look: PlotLook
    at: tuple[tuple[float, Task, Method, int | None, int | None], ...]
    metric: str
    panel: str = "test"

    @property
    def privileged(self) -> bool:
        """Whether every method of the line is privileged."""
        return all(method.privileged for _, _, method, *_ in self.at)


def draw_lines(
    axes: Axes, results: Results, lines: list[MeasuredLine], published: Sequence[tuple[Any, PublishedNumbers]] = ()
) -> list[str]:
    """Draw lines with 95 % bands, and published numbers as marks; return the reasons why points are missing.

    Lines of privileged methods are thin and grey, with their names at the end.  published: x positions and numbers.
    """
    ends: list[tuple[float, float, str]] = []
    missing, drawn = [], 0
    for line in lines:
        places, points = [], []
        for place, task, method, shots, n in line.at:
            try:
                points.append(measure_point(results, task, method, line.metric, line.panel, shots, n))
                places.append(place)
            except NoNumberError as why:
                missing.append(str(why))
        if not points:
            continue
        drawn += 1
        x = np.array(places)
        value, low, high = np.array(points, dtype=float).T  # a limit of None becomes NaN, and no band is drawn there
        color, marker, dash = line.look
        if line.privileged:
            draw_grey_line(axes, x, value, dash)
            ends.append((x[-1], value[-1], line.label))
        else:
            face = color if line.panel == "test" else "none"
            axes.plot(x, value, color=color, marker=marker, ls=dash, label=line.label, ms=6, mfc=face)
            low, high = np.clip((low, high), *BAND_LIMITS.get(line.metric, (-np.inf, np.inf)))
            axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    if not drawn:
        raise NoNumberError("; ".join(dict.fromkeys(missing)) or "nothing is chosen")
    for (at, table), marker in zip(published, "Dohs*", strict=False):
        axes.plot(
            at, table.values, color="#000000", marker=marker, ls="", mfc="none", ms=8, label=table.label,
        )  # fmt: skip
    axes.margins(x=0.12 if ends else 0.05)
    axes.set_ylabel(metric_name(lines[0].metric))
    write_line_names(axes, ends)
    return missing


def measure_point(
    results: Results, task: Task, method: Method, metric: str, panel: str, shots: int | None, n: int | None = None
) -> tuple[float, float | None, float | None]:
    """Return the value and its 95 % limits, as in a claim's check of this number alone."""
    return measure_check(Check("", selection_of(task, method, metric, panel, shots, n)), results)[:3]


def selection_of(
    task: Task, method: Method, metric: str, panel: str, shots: int | None, n: int | None = None
) -> Selection:
    """Make the selection of one number of a task's and a method's trials."""
    a, b = ({"name": x.name} | field_values(x) for x in (task, method))
    return Selection(a, b, panel=panel, shots=shots, metric=metric, n=n)


def metric_name(metric: str) -> str:
    """Return the metric's name for people: without `diagnostic:` or `curve:`, with spaces."""
    name = metric.partition(":")[2] or metric
    return METRIC_NAMES.get(name, name.replace("_", " "))


def at_shots_text(metric: str, shots: int | None) -> str:
    """Return ` at 5 shots`, or "" for a metric of a whole trial (`diagnostic:` and `curve:`)."""
    if ":" in metric:
        return ""
    return " at the largest number of shots" if shots is None else f" at {shots} shot{'s' if shots != 1 else ''}"


def capitalised(text: str) -> str:
    """Return the text with its first letter in upper case and the rest unchanged."""
    return text[:1].upper() + text[1:]


def labelled_settings(tasks: list[Task], methods: dict[Method, str]) -> dict[str, tuple[Task, Method]]:
    """Return every combination of a task and a method, under a label of the fields in which they differ."""
    found = {}
    for task, name in distinct_task_labels(tasks).items():
        if len({t.name for t in tasks}) == 1:
            name = name.partition(": ")[2]
        for method, label in methods.items():
            found[", ".join(([name] if name else []) + [label] * (len(methods) > 1 or not name))] = task, method
    return found


def all_learned_tensors(results: Results, trial: Trial) -> dict[str, np.ndarray]:
    """Return the tensors that the trial's method learned, by name; {} where they were too large to store."""
    manifest = results.trial_manifest(trial)
    if "learned.safetensors" not in manifest["files"]:
        return {}
    return safetensors.numpy.load(bytes(results.store.read_verified(manifest, "learned.safetensors")))


def named_learned_tensors(results: Results, trial: Trial, *names: str) -> list[np.ndarray]:
    """Return the learned tensors of these names. Raises NoNumberError where one was not stored."""
    held = all_learned_tensors(results, trial)
    for name in names:
        if name not in held:
            kept = ", ".join(sorted(held)) or "nothing"
            raise NoNumberError(f"{trial.method.name} on {trial.task.name} stored no tensor {name!r}, but {kept}")
    return [held[name] for name in names]


def small_multiples_size(count: int, each: float) -> tuple[float, float]:
    """Return width and height in inches of `count` small panels, four in a row, each about `each` wide and high."""
    columns = min(count, 4)
    return max(FIGURE_SIZE[0], min(PAGE_WIDTH, each * columns)), each * -(-count // columns) + 0.6


def small_multiples(figure: mpl.Figure, count: int) -> list[Axes]:
    """Add `count` panels to the figure, four in a row."""
    columns = min(count, 4)
    figure.set_layout_engine("constrained", w_pad=0.12)  # inches: room for a panel's label beside its neighbour
    panels = figure.subplots(-(-count // columns), columns, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    return list(panels.flat[:count])
