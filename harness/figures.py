"""Figures of claims: every number drawn is one that a claim can measure, or a tensor that a method learned.

A figure is a `[[claims.figures]]` table with a `kind`, a `caption` where the kind's own does not say enough, and the
fields of the kind's class below. `task` and the entries of `methods` are selections as in a claim's checks; a method's
table may also hold a `label`. Without `methods` all of the suite are drawn. `published`, a table or a list of tables
with `values`, `label`, and `shots` or `x`, holds numbers of a paper; they are drawn as unconnected marks.

Kinds: shots, along, candidates, spread and simplex draw scores; latents, spectrum, cosines, margins and curves what was learned.
For example figures = [{ kind = "shots", methods = ["rfm", "shared"] }].
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from scipy import sparse

from harness.board.board import labels
from harness.board.make import MEANS
from harness.claims import WINS, Check, Claim, Selection, read_table
from harness.data import Pairs
from harness.errors import Mistake
from harness.judge import Results, Unfinished, measured
from harness.method import Method
from harness.report.plots import LOOKS, SIZE, WIDE, grey_line, legend, look, name_lines, svg_of
from harness.report.words import number, told_apart
from harness.scores import stats
from harness.store.prepared import open_prepared
from harness.task import Task
from harness.trials import choose
from harness.trials.plan import Plan
from harness.trials.suite import Suite
from harness.trials.trial import Trial, fields_of

DASHES = ("-", "--", ":", "-.")
LARGEST = 60  # users in a matrix of cosines: with more, cells are too small to see
NAMES = {
    "auc": "AUC",
    "gain_of_n": "normalised gain",
    "win_random": "win rate over a random candidate",
    "win_shared": "win rate over the choice of shared",
}
LIMITS = {metric: (0, most) for metric, most in (MEANS | {"error": 1.0} | dict.fromkeys(WINS, 1.0)).items()}
LIMITS |= {"gain_of_n": (-np.inf, 1)}  # no band goes beyond


def figures(claim: Claim, results: Results) -> list[tuple[str, str]]:
    """Caption and SVG of each figure of a claim; where trials are missing the caption says so and the SVG is empty."""
    made = read_figures(claim)
    wanted = [{"name": f.task} if isinstance(f.task, str) else f.task or {} for f in made]
    differ = [key for key in dict.fromkeys(key for task in wanted for key in task) if _several(wanted, key)]
    found = []
    for figure, task in zip(made, wanted, strict=True):
        told = ", ".join(f"{_words(key)} {_words(task[key])}" for key in differ if key in task)
        found.append(captioned(figure, results, f" Task: {told}." if told and not figure.caption else ""))
    return found


def _several(tables: list[dict], key: str) -> bool:
    return any(table.get(key) != tables[0].get(key) for table in tables)


def _words(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def captioned(made: Figure, results: Results, of: str = "") -> tuple[str, str]:
    missing: list[str] = []
    try:
        svg = svg_of(lambda figure: missing.extend(made.draw(figure, results)), made.size(results))
    except Unfinished as why:
        return f"No figure: {why}.", ""
    told = f" Not drawn: {'; '.join(dict.fromkeys(missing))}." if missing else ""
    return (made.caption or made.says()) + of + told, svg


def read_figures(claim: Claim) -> list[Figure]:
    """The claim's figures, with every kind and key known. Raises Mistake."""
    found = []
    for i, table in enumerate(claim.figures):
        where, kind = f"claim {claim.id}, figure {i + 1}", str(table.get("kind"))
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(KINDS)}"
            raise Mistake(f"{where}: {f'there is no kind {kind!r}' if 'kind' in table else 'it has no kind'}", hint)
        made = read_table(KINDS[kind], {k: v for k, v in table.items() if k != "kind"}, where)
        if any(bool(series.shots) != isinstance(made, Shots) for series in getattr(made, "published", ())):
            raise Mistake(f"{where}: published lies along the wrong axis", "shots for kind shots, x for others")
        found.append(made)
    return found


def check_figures(suite: Suite, claims: tuple[Claim, ...]) -> None:
    """Raises Mistake where a figure selects what its suite lacks: drawn of nothing, each stops at its first trial."""
    for claim in claims:
        try:
            figures(claim, Results(Plan(suite, (), (), {}), None))
        except Mistake as mistake:
            raise Mistake(f"{suite.name}: a figure of {claim.id}: {mistake.message}", mistake.hint) from None


@dataclass(frozen=True)
class Published:
    """Numbers of a paper, and at which shots or at which x."""

    values: tuple[float, ...]
    label: str = "published"
    shots: tuple[float, ...] = ()
    x: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) != len(self.shots + self.x):
            raise Mistake(
                f"{len(self.values)} values have {len(self.shots + self.x)} places", "shots or x, one for each"
            )


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What every kind of figure may hold."""

    task: object = None
    methods: tuple[object, ...] = ()
    caption: str = ""

    def size(self, results: Results) -> tuple[float, float]:
        """Width and height in inches."""
        return SIZE

    def says(self) -> str:
        """The caption where the claim gives none."""
        raise NotImplementedError

    def draw(self, figure, results: Results) -> list[str]:
        """Draws what is finished and returns why the rest is not; raises Unfinished where nothing is."""
        raise NotImplementedError

    def chosen(self, results: Results) -> dict[Method, str]:
        """Every method setting to draw, with its label."""
        named: dict[Method, str] = {}
        for wanted in self.methods or (None,):
            label = wanted.get("label", "") if isinstance(wanted, dict) else ""
            wanted = {k: v for k, v in wanted.items() if k != "label"} if isinstance(wanted, dict) else wanted
            fits = results.matching("method", wanted)
            named |= dict.fromkeys(fits, label if len(fits) == 1 else "")
        return {method: named[method] or label for method, label in labels(list(named)).items()}


@dataclass(frozen=True)
class Line:
    """Numbers to measure: at each x those of a task, a method, and numbers of shots and candidates (None: the largest)."""

    label: str
    look: tuple  # colour, marker, dash
    at: tuple[tuple[float, Task, Method, int | None, int | None], ...]
    metric: str
    panel: str = "test"

    @property
    def privileged(self) -> bool:
        return all(method.privileged for _, _, method, *_ in self.at)


def draw_lines(axes, results: Results, lines: list[Line], published: tuple = ()) -> list[str]:
    """Lines with 95 % bands, privileged ones thin and grey with their names at the end; published (x, table) as marks."""
    ends, missing, drawn = [], [], 0
    for line in lines:
        x, points = [], []
        for place, task, method, shots, n in line.at:
            try:
                points.append(point(results, task, method, line.metric, line.panel, shots, n))
                x.append(place)
            except Unfinished as why:
                missing.append(str(why))
        if not points:
            continue
        drawn += 1
        x = np.array(x)
        value, low, high = np.array(points, dtype=float).T  # a limit of None becomes NaN, and no band is drawn there
        color, marker, dash = line.look
        if line.privileged:
            grey_line(axes, x, value, dash)
            ends.append((x[-1], value[-1], line.label))
        else:
            face = color if line.panel == "test" else "none"
            axes.plot(x, value, color=color, marker=marker, ls=dash, label=line.label, ms=6, mfc=face)
            low, high = np.clip((low, high), *LIMITS.get(line.metric, (-np.inf, np.inf)))
            axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    if not drawn:
        raise Unfinished("; ".join(dict.fromkeys(missing)) or "nothing is chosen")
    for (x, table), marker in zip(published, "Dohs*", strict=False):
        axes.plot(
            x, table.values, color="#000000", marker=marker, ls="", mfc="none", ms=8, label=table.label,
        )  # fmt: skip
    axes.margins(x=0.12 if ends else 0.05)
    axes.set_ylabel(metric_name(lines[0].metric))
    name_lines(axes, ends)
    return missing


def point(
    results: Results, task: Task, method: Method, metric: str, panel: str, shots: int | None, n: int | None = None
) -> tuple[float, float | None, float | None]:
    """Value and 95 % limits, as a claim's check of this and no more has them."""
    return measured(Check("", _selection(task, method, metric, panel, shots, n)), results)[:3]


def _selection(
    task: Task, method: Method, metric: str, panel: str, shots: int | None, n: int | None = None
) -> Selection:
    one = ({"name": x.name} | fields_of(x) for x in (task, method))
    return Selection(*one, panel=panel, shots=shots, metric=metric, n=n)


def metric_name(metric: str) -> str:
    name = metric.partition(":")[2] or metric
    return NAMES.get(name, name.replace("_", " "))


def at_shots(metric: str, shots: int | None) -> str:
    """` at 5 shots`; nothing for what is read once of a whole trial."""
    if ":" in metric:
        return ""
    return " at the largest number of shots" if shots is None else f" at {shots} shot{'s' if shots != 1 else ''}"


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, kw_only=True)
class Shots(Figure):
    """A metric against shots, a line per method; several panels have dashes of their own."""

    metric: str = "accuracy"
    panels: tuple[str, ...] = ("test",)
    published: tuple[Published, ...] = ()

    def says(self) -> str:
        where = (
            f" Hollow marks: panel {' and '.join(p for p in self.panels if p != 'test')}."
            if len(self.panels) > 1
            else ""
        )
        return f"{first_upper(metric_name(self.metric))} against shots, with 95 % bands over people and seeds.{where}"

    def draw(self, figure, results: Results) -> list[str]:
        axes, task = figure.subplots(), results.one("task", self.task)
        place, lines, ranked = range(len(task.shots)), [], 0
        for method, label in self.chosen(results).items():
            color, marker, dash = look(ranked)
            ranked += not method.privileged
            at = tuple((x, task, method, shots, None) for x, shots in zip(place, task.shots, strict=True))
            for panel, own in zip(self.panels, DASHES, strict=False):
                several = len(self.panels) > 1
                told, dash = (f"{label}, {panel}", own) if several else (label, "-" if method.privileged else dash)
                lines.append(Line(told, (color, marker, dash), at, self.metric, panel))
        published = [(np.interp(t.shots, task.shots, place), t) for t in self.published]
        missing = draw_lines(axes, results, lines, published)
        axes.set_xticks(place, task.shots)
        axes.set_xlabel("shots: answers seen of each new user")
        legend(figure)
        return missing


@dataclass(frozen=True, kw_only=True)
class Along(Figure):
    """A metric against a field that the suite sweeps, of tasks or of methods; `by` is a second field, a line per value.

    In a sweep of a method's field, methods of which it does not vary are drawn level.
    """

    field: str
    metric: str = "accuracy"
    by: str = ""
    shots: int | None = None
    panel: str = "test"
    log: bool = False
    published: tuple[Published, ...] = ()

    def says(self) -> str:
        what = first_upper(metric_name(self.metric)) + at_shots(self.metric, self.shots)
        return f"{what} against {self.field.replace('_', ' ')}, with 95 % bands."

    def draw(self, figure, results: Results) -> list[str]:
        missing = self.on(figure.subplots(), results)
        legend(figure)
        return missing

    def swept(self, methods: Iterable[Method]) -> list[Method]:
        """Those of a name of which the field takes several values."""
        seen: dict[str, set] = {}
        for method in methods:
            seen.setdefault(method.name, set()).add(fields_of(method).get(self.field))
        return [m for m in methods if len(seen[m.name]) > 1]

    def on(self, axes, results: Results) -> list[str]:
        tasks, methods = results.matching("task", self.task), self.chosen(results)
        of_task = len({fields_of(t).get(self.field) for t in tasks}) > 1
        if not of_task:
            tasks = [results.one("task", self.task)]
        swept = tasks if of_task else self.swept(methods)
        by_task = len({fields_of(t).get(self.by) for t in tasks}) > 1
        values = sorted({fields_of(s)[self.field] for s in swept})
        if len(values) < 2:
            raise Mistake(f"it sweeps {self.field!r}, which varies nowhere", "give it a list")
        if self.by and not any(self.by in fields_of(s) for s in [*tasks, *methods]):
            raise Mistake(f"it has a line for each {self.by!r}, which is no field", "drop by")
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        place = {v: float(v) if numeric else float(i) for i, v in enumerate(values)}
        found: dict[tuple[str, object], list] = {}
        for task in tasks:
            for method, label in methods.items():
                other = fields_of(task if by_task else method).get(self.by)
                level = not of_task and method not in swept
                told_by = not by_task and other is not None  # the line's label says which setting of the method it is
                name = label if level or (of_task and not told_by) else method.name
                own = fields_of(task if of_task else method)
                line = found.setdefault((name, other), [])
                line += [(place[v], task, method, self.shots, None) for v in (values if level else [own[self.field]])]
        lines, ranked = [], 0
        for (name, value), at in found.items():
            if len({x for x, *_ in at}) < len(at):
                told = f"several settings of {name} share one {self.field}"
                raise Mistake(told, "add fields to the figure's task and methods, or name a second field: by")
            privileged = at[0][2].privileged
            by = "" if privileged else f"{self.by.replace('_', ' ')} "
            told = f"{name}, {by}{value}" if self.by and value is not None else name
            look_of = ("", "", "-") if privileged else look(ranked)
            lines.append(Line(told, look_of, tuple(sorted(at, key=lambda p: p[0])), self.metric, self.panel))
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
class Candidates(Figure):
    """A metric of the best of n candidates against n, a line per method."""

    metric: str = "gain_of_n"
    shots: int | None = None

    def says(self) -> str:
        what = first_upper(metric_name(self.metric)) + at_shots(self.metric, self.shots)
        return f"{what} against n, the candidates chosen among, with 95 % bands over people and seeds."

    def draw(self, figure, results: Results) -> list[str]:
        axes, task, lines, ranked = figure.subplots(), results.one("task", self.task), [], 0
        methods = self.chosen(results)
        trial = results.trials(task, next(iter(methods)))[0]
        choices = open_prepared(results.store, trial.task_key).splits.panels["test"].choices
        if choices is None:
            raise Unfinished(f"{task.name} has no candidates to choose from")
        counts = choose.counts(choices.shape[1])
        for method, label in methods.items():
            color, marker, dash = look(ranked)
            ranked += not method.privileged
            at = tuple((float(x), task, method, self.shots, n) for x, n in enumerate(counts))
            lines.append(Line(label, (color, marker, "-" if method.privileged else dash), at, self.metric))
        missing = draw_lines(axes, results, lines)
        axes.set_xticks(range(len(counts)), counts)
        axes.set_xlabel("n: candidates chosen among")
        legend(figure)
        return missing


@dataclass(frozen=True, kw_only=True)
class Spread(Figure):
    """A dot for every seed, and mean and standard deviation over seeds, a row per method."""

    metric: str = "accuracy"
    shots: int | None = None
    panel: str = "test"

    def size(self, results: Results) -> tuple[float, float]:
        return SIZE[0], 1 + 0.42 * max(3, len(self.chosen(results)))

    def says(self) -> str:
        what = first_upper(metric_name(self.metric)) + at_shots(self.metric, self.shots)
        return f"{what}: a dot per seed; mean and standard deviation."

    def draw(self, figure, results: Results) -> list[str]:
        axes, task, missing, rows = figure.subplots(), results.one("task", self.task), [], []
        for method, label in self.chosen(results).items():
            try:
                values = results.values(_selection(task, method, self.metric, self.panel, self.shots)).value
            except Unfinished as why:
                missing.append(str(why))
                continue
            y, mean, sd = len(rows), values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan
            color, marker, _ = look(y)
            apart = np.linspace(-0.18, 0.18, len(values)) if len(values) > 1 else 0  # so that equal seeds show
            axes.plot(values, y + apart, color=color, marker=marker, ls="", ms=5, alpha=0.7)
            axes.errorbar(mean, y, xerr=sd, color="#000000", marker="|", ms=16, mew=2, capsize=4, lw=1.2)
            told = f"{number(mean)} ± {number(sd)}"
            axes.text(1.02, y, told, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
            rows.append(label)
        if not rows:
            raise Unfinished("; ".join(dict.fromkeys(missing)))
        axes.set_yticks(range(len(rows)), rows)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=metric_name(self.metric))
        axes.grid(axis="x", alpha=0.3)
        return missing


@dataclass(frozen=True, kw_only=True)
class Latents(Figure):
    """The two main components of what methods hold of each test user, marked by his hidden mode; one seed.

    A user's mode is the largest of his true weights.
    """

    tensor: str = "users/0"

    def size(self, results: Results) -> tuple[float, float]:
        return panels_size(len(self.chosen(results)), 3.2)

    def says(self) -> str:
        return "What is held of each test user after the largest number of shots, by hidden mode; first seed."

    def draw(self, figure, results: Results) -> list[str]:
        task, missing, found = results.one("task", self.task), [], []
        for method, label in self.chosen(results).items():
            try:
                trial = results.trials(task, method)[0]
                rows = learned(results, trial, self.tensor)[0]
                if np.allclose(rows, rows[0]):
                    raise Unfinished(f"{label} holds the same of everybody")
                found.append((label, trial, rows))
            except Unfinished as why:
                missing.append(str(why))
        if not found:
            raise Unfinished("; ".join(dict.fromkeys(missing)))
        prepared = open_prepared(results.store, found[0][1].task_key)
        if prepared.truth is None:
            raise Unfinished(f"nobody knows the modes of {task.name}")
        mode = prepared.truth.users[prepared.splits.panels["test"].query.people].argmax(1)
        for axes, (label, _, rows) in zip(small_multiples(figure, len(found)), found, strict=True):
            xy, share = components(rows)
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
        legend(figure, figure.axes[0].get_legend_handles_labels()[0])
        return missing


def components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[n, 2] scores of the rows on their first two principal components, and the shares of variance."""
    rows = rows.reshape(len(rows), -1).astype(float)
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    u, s = np.pad(u, ((0, 0), (0, 2))), np.pad(s, (0, 2))  # a row of one number has one component
    return u[:, :2] * s[:2], s[:2] ** 2 / (s**2).sum()


@dataclass(frozen=True, kw_only=True)
class Simplex(Figure):
    """A metric against one of the true weights of each test user, as its share of them all; a line per number of shots.

    Users of all seeds, in ten bins of the share; a panel per method.
    """

    metric: str = "accuracy"
    aspect: int = 0

    def size(self, results: Results) -> tuple[float, float]:
        return panels_size(len(self.chosen(results)), 3.6)

    def says(self) -> str:
        of = f"the share of aspect {self.aspect + 1} in a user's true weights"
        return (
            f"{first_upper(metric_name(self.metric))} against {of}, in tenths, with 95 % bands over people and seeds."
        )

    def draw(self, figure, results: Results) -> list[str]:
        task, missing, found = results.one("task", self.task), [], []
        for method, label in self.chosen(results).items():
            try:
                found.append((label, [self.read(results, task, method, n) for n in task.shots]))
            except Unfinished as why:
                missing.append(str(why))
        if not found:
            raise Unfinished("; ".join(dict.fromkeys(missing)))
        for axes, (label, lines) in zip(small_multiples(figure, len(found)), found, strict=True):
            for i, (shots, line) in enumerate(zip(task.shots, lines, strict=True)):
                x, value, low, high = line
                color, marker, dash = look(i)
                axes.plot(x, value, color=color, marker=marker, ls=dash, ms=5, label=f"{shots} shots")
                axes.fill_between(x, *np.clip((low, high), 0, 1), color=color, alpha=0.12, lw=0)
            axes.set(xlabel=f"share of aspect {self.aspect + 1}", ylabel=metric_name(self.metric), xlim=(0, 1))
            axes.set_title(label, fontsize=10)
        legend(figure, figure.axes[0].get_legend_handles_labels()[0])
        return missing

    def read(self, results: Results, task: Task, method: Method, shots: int) -> np.ndarray:
        """float[4, bins that hold somebody]: middle of the bin, mean, limits."""
        trials, place = results.trials(task, method), []
        found = results.cells(trials, _selection(task, method, self.metric, "test", shots), shots)
        for trial in trials:
            prepared = open_prepared(results.store, trial.task_key)
            if prepared.truth is None:
                raise Unfinished(f"nobody knows the weights of {task.name}")
            weights = np.abs(prepared.truth.users[prepared.splits.panels["test"].query.people])
            place.append(np.minimum(10 * weights[:, self.aspect] / weights.sum(1), 9).astype(int))
        place = np.concatenate(place)
        person, seed, value = (found[c].to_numpy() for c in ("person", "seed", "value"))
        rows = []
        for i in np.unique(place):
            one = stats.estimate(value[None, place == i], person[place == i], seed[place == i])
            rows.append((i / 10 + 0.05, one.value[0], *(limit[0] for limit in one.interval())))
        return np.array(rows).T


@dataclass(frozen=True, kw_only=True)
class Spectrum(Along):
    """A learned spectrum, its largest value 1, a thin line per seed, beside a metric against a method's field."""

    tensor: str = "state/spectrum"

    def size(self, results: Results) -> tuple[float, float]:
        return 9.6, SIZE[1]

    def says(self) -> str:
        return f"Left: singular values, a line per seed, the largest set to 1. Right: {super().says()}"

    def draw(self, figure, results: Results) -> list[str]:
        left, right = figure.subplots(1, 2)
        missing = self.on(right, results)
        task = results.one("task", self.task)
        swept = self.swept(self.chosen(results))
        largest = max(fields_of(m)[self.field] for m in swept)
        for trial in results.trials(task, swept[0]):
            try:
                values = learned(results, trial, self.tensor)[0]
            except Unfinished as why:
                missing.append(str(why))
                continue
            values = values[: 2 * int(largest)]  # what follows the fields drawn beside it, and no long tail
            left.plot(np.arange(1, len(values) + 1), values / values[0], color="#0072b2", lw=1, marker=".", ms=4)
        left.set(xlabel="singular value", ylabel="size, the largest being 1", ylim=(0, 1.05))
        legend(figure)
        return missing


@dataclass(frozen=True, kw_only=True)
class Cosines(Figure):
    """Cosines between training users of the first seed, in three ways; see `preference_cosines`."""

    def size(self, results: Results) -> tuple[float, float]:
        return WIDE, 4.3

    def says(self) -> str:
        return (
            "Cosines between users: of the mean features of what each prefers; of the same less the mean over users; and "
            "of the mean difference between preferred and rejected. Above each the mean absolute cosine of two users. Each "
            "is of averages over many answers, in which what is particular to one cancels, and so larger than the average "
            "cosine of single answers."
        )

    def draw(self, figure, results: Results) -> list[str]:
        task = results.one("task", self.task)
        trial = next((t for t in results.plan.trials if t.task == task), None)
        if trial is None:
            raise Unfinished(f"{task.name} is not prepared")
        found = preference_cosines(open_prepared(results.store, trial.task_key).splits.train)
        titles = {"preferred": "preferred", "centred": "preferred, less the mean", "direction": "preferred − rejected"}
        panels = figure.subplots(1, 3)
        for axes, (name, matrix) in zip(panels, found.items(), strict=True):
            n = len(matrix)
            shown = np.linspace(0, n - 1, min(n, LARGEST)).round().astype(int)
            image = axes.imshow(matrix[np.ix_(shown, shown)], cmap="cividis", vmin=-1, vmax=1)
            mean = np.abs(matrix[~np.eye(n, dtype=bool)]).mean()
            axes.set_title(f"{titles[name]}: {number(mean)}", fontsize=10)
            axes.set(xticks=[], yticks=[], xlabel=f"{len(shown)} of {n} users" if n > LARGEST else f"{n} users")
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=panels, pad=0.01, aspect=30)
        return []


def preference_cosines(pairs: Pairs) -> dict[str, np.ndarray]:
    """float64[n_users, n_users] under each of three names: cosines between users (DPO generalisation, section 5).

    preferred: of the mean features of what a user prefers; centred: of the same less the mean over users; direction:
    of the mean features of preferred less rejected. A soft label counts both sides. A user without pairs has zeros.
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
class Margins(Figure):
    """Margins of all training pairs over time: median, 5th to 95th percentile, extremes; one seed, a panel per setting.

    A task may say between which limits they should lie: `task.band(times, state) -> (lower, upper)`, NaN where it says
    nothing; `state` is what the method learned, arrays by name.
    """

    margins: str = "state/margins"
    times: str = "state/times"
    until: float | None = None  # the last time drawn

    def settings(self, results: Results) -> dict[str, tuple[Task, Method]]:
        return settings(results.matching("task", self.task), self.chosen(results))

    def size(self, results: Results) -> tuple[float, float]:
        return panels_size(len(self.settings(results)), 3.2)

    def says(self) -> str:
        return (
            "Margins of all training pairs over time: median, 5th to 95th percentile (dark) and extremes (light); "
            "dashed: the limits that theory gives. First seed."
        )

    def draw(self, figure, results: Results) -> list[str]:
        missing, found = [], []
        for label, (task, method) in self.settings(results).items():
            try:
                trial = results.trials(task, method)[0]
                times, margins = learned(results, trial, self.times, self.margins)
            except Unfinished as why:
                missing.append(str(why))
                continue
            found.append((label, task, times, margins, learned_of(results, trial)))
        if not found:
            raise Unfinished("; ".join(dict.fromkeys(missing)))
        for axes, (label, task, times, margins, held) in zip(small_multiples(figure, len(found)), found, strict=True):
            shown = times <= (np.inf if self.until is None else self.until)
            times, margins = times[shown], margins[shown]
            low, least, median, most, high = np.percentile(margins, (0, 5, 50, 95, 100), axis=1)
            axes.fill_between(times, low, high, color="#0072b2", alpha=0.2, lw=0, label="all pairs")
            axes.fill_between(times, least, most, color="#0072b2", alpha=0.45, lw=0, label="5 to 95 %")
            axes.plot(times, median, color="#000000", lw=1.5, label="median")
            if band := getattr(task, "band", None):
                state = {k.removeprefix("state/"): v for k, v in held.items() if k.startswith("state/")}
                state = {
                    k: v.reshape(()) if v.size == 1 else v for k, v in state.items()
                }  # stored numbers have a shape
                for limit in band(times, state):
                    axes.plot(times, limit, color="#d55e00", ls="--", lw=1.2, label="limits")
            axes.set(xlabel="time", ylabel="margin")
            axes.set_title(label, fontsize=10)
        handles = {h.get_label(): h for h in figure.axes[0].get_legend_handles_labels()[0]}
        legend(figure, list(handles.values()))
        return missing


@dataclass(frozen=True, kw_only=True)
class Curves(Figure):
    """Logged curves, means over seeds with 95 % bands, a line per setting of tasks and methods, axes per curve.

    over: a learned tensor with as many values as a curve has points; without it, points are counted.
    """

    curves: tuple[str, ...]
    over: str = ""
    log: bool = False

    def size(self, results: Results) -> tuple[float, float]:
        return SIZE if len(self.curves) == 1 else panels_size(len(self.curves), 4.2)

    def says(self) -> str:
        return f"{first_upper(', '.join(map(metric_name, self.curves)))} while learning, with 95 % bands over seeds."

    def draw(self, figure, results: Results) -> list[str]:
        missing, drawn = [], 0
        wanted = settings(results.matching("task", self.task), self.chosen(results))
        panels = small_multiples(figure, len(self.curves))
        for axes, name in zip(panels, self.curves, strict=True):
            for i, (label, (task, method)) in enumerate(wanted.items()):
                try:
                    x, values, seeds = self.read(results, task, method, name)
                except Unfinished as why:
                    missing.append(str(why))
                    continue
                found = stats.estimate(values, np.arange(len(seeds)), seeds)
                color, marker, dash = look(i)
                every = max(1, len(x) // 8)
                axes.plot(x, found.value, color=color, marker=marker, ls=dash, markevery=every, ms=5, label=label)
                axes.fill_between(x, *found.interval(), color=color, alpha=0.15, lw=0)
                drawn += 1
            axes.set(xlabel=self.over.rpartition("/")[2] or "point", ylabel=metric_name(name))
            if self.log:
                axes.set_yscale("log")
        if not drawn:
            raise Unfinished("; ".join(dict.fromkeys(missing)))
        legend(figure, figure.axes[0].get_legend_handles_labels()[0])
        return missing

    def read(
        self, results: Results, task: Task, method: Method, name: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x [T], values [T, seeds], seeds; of curves of several lengths, what all have."""
        trials = results.trials(task, method)
        found = [results.manifest(t)["facts"]["curves"].get(name) for t in trials]
        if not all(found):
            raise Unfinished(f"{method.name} on {task.name} logs no curve {name!r}")
        n = min(map(len, found))
        x = learned(results, trials[0], self.over)[0][:n] if self.over else np.arange(1, n + 1)
        return x, np.array([curve[:n] for curve in found]).T, np.array([t.seed for t in trials])


def settings(tasks: list[Task], methods: dict[Method, str]) -> dict[str, tuple[Task, Method]]:
    """Every task with every method, under a label that holds only what tells them apart."""
    found = {}
    for task, name in told_apart(tasks).items():
        if len({t.name for t in tasks}) == 1:
            name = name.partition(": ")[2]
        for method, label in methods.items():
            found[", ".join(([name] if name else []) + [label] * (len(methods) > 1 or not name))] = task, method
    return found


def learned_of(results: Results, trial: Trial) -> dict[str, np.ndarray]:
    """What the trial's method learned, by name; empty where it was too large to keep."""
    manifest = results.manifest(trial)
    if "learned.safetensors" not in manifest["files"]:
        return {}
    return safetensors.numpy.load(bytes(results.store.load(manifest, "learned.safetensors")))


def learned(results: Results, trial: Trial, *names: str) -> list[np.ndarray]:
    held = learned_of(results, trial)
    for name in names:
        if name not in held:
            kept = ", ".join(sorted(held)) or "nothing"
            raise Unfinished(f"{trial.method.name} on {trial.task.name} kept no tensor {name!r}; it kept {kept}")
    return [held[name] for name in names]


def panels_size(count: int, each: float) -> tuple[float, float]:
    """Inches for small multiples, four in a row, each about `each` wide and high."""
    columns = min(count, 4)
    return max(SIZE[0], min(WIDE, each * columns)), each * -(-count // columns) + 0.6


def small_multiples(figure, count: int) -> list:
    columns = min(count, 4)
    figure.get_layout_engine().set(w_pad=0.12)  # inches: room for a panel's label beside its neighbour
    panels = figure.subplots(-(-count // columns), columns, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    return list(panels.flat[:count])


KINDS: dict[str, type[Figure]] = {
    "shots": Shots,
    "along": Along,
    "candidates": Candidates,
    "spread": Spread,
    "latents": Latents,
    "simplex": Simplex,
    "spectrum": Spectrum,
    "cosines": Cosines,
    "margins": Margins,
    "curves": Curves,
}
