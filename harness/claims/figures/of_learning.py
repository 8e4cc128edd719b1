"""Figures of learned tensors and learning curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from harness.claims.figures.of_scores import SweepFigure
from harness.claims.figures.parts import (
    ClaimFigure,
    all_learned_tensors,
    capitalised,
    labelled_settings,
    metric_name,
    named_learned_tensors,
    small_multiples,
    small_multiples_size,
)
from harness.claims.results import NoNumberError, Results
from harness.data import Pairs
from harness.method import Method
from harness.report.plots import FIGURE_SIZE, LOOKS, PAGE_WIDTH, add_legend, look_at_index
from harness.report.words import format_number
from harness.scores import stats
from harness.store.prepared import open_prepared_task
from harness.task import Task

if TYPE_CHECKING:
    from matplotlib import figure as mpl

MAX_USERS_IN_MATRIX = 60  # with more users, the cells of a matrix are too small to see


@dataclass(frozen=True, kw_only=True)
class LatentsFigure(ClaimFigure):
    """The first two principal components of test users' adapted tensors, marked by hidden mode; first seed.

    A user's mode is the position of their largest true weight.
    """

    tensor: str = "users/0"  # the name of a learned tensor

    def size_inches(self, results: Results) -> tuple[float, float]:
        return small_multiples_size(len(self.chosen_methods(results)), 3.2)

    def default_caption(self) -> str:
        return (
            "Each test user's learned representation after the largest number of shots (first two principal "
            "components), marked by hidden mode; first seed."
        )

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        task, missing, found = results.single_setting("task", self.task), [], []
        for method, label in self.chosen_methods(results).items():
            try:
                trial = results.trials_by_seed(task, method)[0]
                rows = named_learned_tensors(results, trial, self.tensor)[0]
                if np.allclose(rows, rows[0]):
                    raise NoNumberError(f"{label} learned the same for all users")
                found.append((label, trial, rows))
            except NoNumberError as why:
                missing.append(str(why))
        if not found:
            raise NoNumberError("; ".join(dict.fromkeys(missing)))
        prepared = open_prepared_task(results.store, found[0][1].task_key)
        if prepared.truth is None:
            raise NoNumberError(f"{task.name} has no ground truth, so modes are unknown")
        mode = prepared.truth.users[prepared.splits.panels["test"].query.people].argmax(1)
        for axes, (label, _, rows) in zip(small_multiples(figure, len(found)), found, strict=True):
            xy, share = principal_components(rows)
            for m in np.unique(mode):
                color, marker, _ = LOOKS[m % len(LOOKS)]
                axes.plot(
                    *xy[mode == m].T, color=color, marker=marker, ls="", ms=5, alpha=0.75, label=f"mode {m}",
                    mfc=color if m % 2 == 0 else "none",
                )  # fmt: skip
            axes.set(
                xlabel=f"component 1 ({share[0]:.0%})", ylabel=f"component 2 ({share[1]:.0%})", xticks=[], yticks=[]
            )
            axes.set_title(label, fontsize=10)
        add_legend(figure, figure.axes[0].get_legend_handles_labels()[0])
        return missing


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows on their first two principal components, float64[n, 2], and the components' shares of variance."""
    rows = rows.reshape(len(rows), -1).astype(float)
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    u, s = np.pad(u, ((0, 0), (0, 2))), np.pad(s, (0, 2))  # rows of one number have only one component
    return u[:, :2] * s[:2], s[:2] ** 2 / (s**2).sum()


@dataclass(frozen=True, kw_only=True)
class SpectrumFigure(SweepFigure):
    """Left: a learned spectrum divided by its largest value, a line per seed. Right: a metric against a method's field."""

    tensor: str = "state/spectrum"  # the name of a learned tensor

    def size_inches(self, results: Results) -> tuple[float, float]:
        return 9.6, FIGURE_SIZE[1]

    def default_caption(self) -> str:
        return f"Left: singular values divided by the largest, a line per seed. Right: {super().default_caption()}"

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        left, right = figure.subplots(1, 2)
        missing = self.on(right, results)
        task = results.single_setting("task", self.task)
        swept = self.swept(self.chosen_methods(results))
        largest = max(self.value(m) for m in swept)
        for trial in results.trials_by_seed(task, swept[0]):
            try:
                values = named_learned_tensors(results, trial, self.tensor)[0]
            except NoNumberError as why:
                missing.append(str(why))
                continue
            values = values[: 2 * int(largest)]  # twice the range of the sweep beside it, without the long tail
            left.plot(np.arange(1, len(values) + 1), values / values[0], color="#0072b2", lw=1, marker=".", ms=4)
        left.set(xlabel="singular value", ylabel="size (largest = 1)", ylim=(0, 1.05))
        add_legend(figure)
        return missing


@dataclass(frozen=True, kw_only=True)
class CosinesFigure(ClaimFigure):
    """Cosines between training users of the first seed, computed in three ways; see `preference_cosines`."""

    def size_inches(self, results: Results) -> tuple[float, float]:
        return PAGE_WIDTH, 4.3

    def default_caption(self) -> str:
        return (
            "Cosines between users: of the mean features of preferred responses; of the same minus the mean over "
            "users; and of the mean difference between preferred and rejected responses. Above each matrix: the mean "
            "absolute cosine of two users. These are cosines of averages over many answers, in which the noise of "
            "single answers cancels, and so they are larger than the average cosine of single answers."
        )

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        task = results.single_setting("task", self.task)
        trial = next((t for t in results.plan.trials if t.task == task), None)
        if trial is None:
            raise NoNumberError(f"{task.name} is not prepared")
        found = preference_cosines(open_prepared_task(results.store, trial.task_key).splits.train)
        titles = {"preferred": "preferred", "centred": "preferred, less the mean", "direction": "preferred − rejected"}
        panels = figure.subplots(1, 3)
        for axes, (name, matrix) in zip(panels, found.items(), strict=True):
            n = len(matrix)
            shown = np.linspace(0, n - 1, min(n, MAX_USERS_IN_MATRIX)).round().astype(int)
            image = axes.imshow(matrix[np.ix_(shown, shown)], cmap="cividis", vmin=-1, vmax=1)
            mean = np.abs(matrix[~np.eye(n, dtype=bool)]).mean()
            axes.set_title(f"{titles[name]}: {format_number(mean)}", fontsize=10)
            axes.set(
                xticks=[], yticks=[], xlabel=f"{len(shown)} of {n} users" if n > MAX_USERS_IN_MATRIX else f"{n} users"
            )
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=panels, pad=0.01, aspect=30)
        return []


def preference_cosines(pairs: Pairs) -> dict[str, np.ndarray]:
    """Return cosines between users, float64[n_users, n_users] each (DPO generalisation, section 5).

    preferred: of the mean features of the items that a user prefers.  centred: of the same minus the mean over users.
    direction: of the mean features of preferred minus rejected items.  A soft label counts towards both items. A user
    without pairs has cosines of 0.
    """
    n = len(pairs)
    user, item = np.tile(pairs.user, 2), np.concatenate([pairs.left, pairs.right])
    weight = np.concatenate([pairs.label, 1 - pairs.label]).astype(float)
    sums = sparse.csr_array((weight, (user, item)), shape=(pairs.n_users, len(pairs.items))) @ pairs.items.features
    preferred = sums / np.maximum(np.bincount(pairs.user, minlength=pairs.n_users), 1)[:, None]
    signs = sparse.csr_array((2.0 * pairs.label - 1, (pairs.user, np.arange(n))), shape=(pairs.n_users, n))
    means = {"preferred": preferred, "centred": preferred - preferred.mean(0), "direction": signs @ pairs.gap}
    units = {k: v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for k, v in means.items()}
    return {name: unit @ unit.T for name, unit in units.items()}


@dataclass(frozen=True, kw_only=True)
class MarginsFigure(ClaimFigure):
    """Margins of all training pairs over time: median, 5th to 95th percentile, extremes; one seed, a panel per setting.

    A task may have theoretical limits: `task.margin_band(times, state) -> (lower, upper)`, with NaN where there are
    none; `state` holds the arrays that the method learned, by name.
    """

    margins: str = "state/margins"  # the name of the tensor of margins
    times: str = "state/times"  # the name of the tensor of times
    until: float | None = None  # the last time drawn

    def settings(self, results: Results) -> dict[str, tuple[Task, Method]]:
        """Return the task and method of every panel, by its label."""
        return labelled_settings(results.matching_settings("task", self.task), self.chosen_methods(results))

    def size_inches(self, results: Results) -> tuple[float, float]:
        return small_multiples_size(len(self.settings(results)), 3.2)

    def default_caption(self) -> str:
        return (
            "Margins of all training pairs over time: median, 5th to 95th percentile (dark) and extremes (light); "
            "dashed: the theoretical limits. First seed."
        )

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        missing, found = [], []
        for label, (task, method) in self.settings(results).items():
            try:
                trial = results.trials_by_seed(task, method)[0]
                times, margins = named_learned_tensors(results, trial, self.times, self.margins)
            except NoNumberError as why:
                missing.append(str(why))
                continue
            found.append((label, task, times, margins, all_learned_tensors(results, trial)))
        if not found:
            raise NoNumberError("; ".join(dict.fromkeys(missing)))
        for axes, (label, task, times, margins, held) in zip(small_multiples(figure, len(found)), found, strict=True):
            shown = times <= (np.inf if self.until is None else self.until)
            times, margins = times[shown], margins[shown]
            low, least, median, most, high = np.percentile(margins, (0, 5, 50, 95, 100), axis=1)
            axes.fill_between(times, low, high, color="#0072b2", alpha=0.2, lw=0, label="all pairs")
            axes.fill_between(times, least, most, color="#0072b2", alpha=0.45, lw=0, label="5 to 95 %")
            axes.plot(times, median, color="#000000", lw=1.5, label="median")
            if band := getattr(task, "margin_band", None):
                state = {k.removeprefix("state/"): v for k, v in held.items() if k.startswith("state/")}
                # a single number is stored as a tensor of one entry
                state = {k: v.reshape(()) if v.size == 1 else v for k, v in state.items()}
                for limit in band(times, state):
                    axes.plot(times, limit, color="#d55e00", ls="--", lw=1.2, label="limits")
            axes.set(xlabel="time", ylabel="margin")
            axes.set_title(label, fontsize=10)
        handles = {h.get_label(): h for h in figure.axes[0].get_legend_handles_labels()[0]}
        add_legend(figure, list(handles.values()))
        return missing


@dataclass(frozen=True, kw_only=True)
class CurvesFigure(ClaimFigure):
    """Logged curves: means over seeds with 95 % bands, a line per setting of tasks and methods, a panel per curve.

    over: a learned tensor with the x value of each point of the curves; without `over`, x is the point's number.
    """

    curves: tuple[str, ...]  # names of learning curves
    over: str = ""  # a learned tensor with the x values; without it, x is the point's number
    log: bool = False  # a logarithmic y axis

    def size_inches(self, results: Results) -> tuple[float, float]:
        return FIGURE_SIZE if len(self.curves) == 1 else small_multiples_size(len(self.curves), 4.2)

    def default_caption(self) -> str:
        return f"{capitalised(', '.join(map(metric_name, self.curves)))} during training, with 95 % bands over seeds."

    def draw_figure(self, figure: mpl.Figure, results: Results) -> list[str]:
        missing, drawn = [], 0
        wanted = labelled_settings(results.matching_settings("task", self.task), self.chosen_methods(results))
        panels = small_multiples(figure, len(self.curves))
        for axes, name in zip(panels, self.curves, strict=True):
            for i, (label, (task, method)) in enumerate(wanted.items()):
                try:
                    x, values, seeds = self.read(results, task, method, name)
                except NoNumberError as why:
                    missing.append(str(why))
                    continue
                found = stats.estimate_means(values, np.arange(len(seeds)), seeds)
                color, marker, dash = look_at_index(i)
                every = max(1, len(x) // 8)
                axes.plot(x, found.value, color=color, marker=marker, ls=dash, markevery=every, ms=5, label=label)
                axes.fill_between(x, *found.interval(), color=color, alpha=0.15, lw=0)
                drawn += 1
            axes.set(xlabel=self.over.rpartition("/")[2] or "point", ylabel=metric_name(name))
            if self.log:
                axes.set_yscale("log")
        if not drawn:
            raise NoNumberError("; ".join(dict.fromkeys(missing)))
        add_legend(figure, figure.axes[0].get_legend_handles_labels()[0])
        return missing

    def read(
        self, results: Results, task: Task, method: Method, name: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return x [T], values [T, seeds] and the seeds; curves of different lengths are cut to the shortest."""
        trials = results.trials_by_seed(task, method)
        found = [results.trial_manifest(t)["facts"]["curves"].get(name) for t in trials]
        if not all(found):
            raise NoNumberError(f"{method.name} on {task.name} logs no curve {name!r}")
        n = min(map(len, found))
        x = named_learned_tensors(results, trials[0], self.over)[0][:n] if self.over else np.arange(1, n + 1)
        return x, np.array([curve[:n] for curve in found]).T, np.array([t.seed for t in trials])
