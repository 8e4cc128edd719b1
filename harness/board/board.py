"""The leaderboard as data: rows of methods, tables of tasks, and what `--json` prints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import polars as pl

from harness.fields import field_values
from harness.method import Method
from harness.scores import worst_off
from harness.task import Task
from harness.trials.suite import Suite

SIMULATED = "simulated"  # the family of tasks whose people are drawn, not asked
REFERENCE_METHOD = "shared"  # the baseline of every gain: one reward function for all users
MAX_SHOWN_VALUE = 60  # characters of a field's value in a label; a label stands in titles and tables


@dataclass(frozen=True)
class Point:
    """A score with its 95 % limits, which are None where there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class BestOf:
    """Scores of a method's best-of-n choices for the test people at one number of shots; every dict is by n."""

    gain: dict[int, Point]  # in true utility, normalised: 0 for a random candidate, 1 for the best of all
    win_random: dict[int, Point]  # probability of being preferred to a random one of all candidates
    win_shared: dict[int, Point]  # ... to the reference method's choice among the same n; {} without the reference
    worse_random: float  # at the largest n: share of people worse off than with a random candidate
    worse_shared: float | None  # ... than with the reference method's choice
    overoptimised_at: int | None  # the n at the peak of the gain; None unless the largest n is significantly worse


@dataclass(frozen=True)
class WrittenScores:
    """Scores of a policy's texts at one number of shots; people and prompts are the same for all policies."""

    # columns of text_worth.text_outcomes; with ground truth also `normalised`, the gain scaled as BestOf.gain
    scores: dict[str, Point]
    best_of: dict[int, Point]  # by n: `normalised` of the method's own choices among the candidates of these prompts


@dataclass(frozen=True)
class Row:
    """One method setting on one task setting. Scores without shots are at the largest number of shots."""

    method: Method
    label: str
    keys: tuple[str, ...]  # keys of its finished trials
    privileged: bool  # the method reads the ground truth: it is drawn as a line and never ranked
    incomplete: str | None  # why trials are missing; such a row has no rank and no interval
    rank: tuple[int, int, int] | None = None  # the rank by score, and the best and the worst possible rank
    curves: dict[str, dict[int, Point]] = field(default_factory=dict)  # metric -> shots -> score
    # in accuracy over the reference, paired; limits hold for all methods at once, those of a control for itself alone
    gain: Point | None = None
    # the gain's p-value, adjusted over all methods but controls; below .05 exactly where its limits exclude 0
    p: float | None = None
    swapped: float | None = None  # accuracy when a user's queries are answered with another user's adaptation
    worse: worst_off.WorseOff | None = None  # share of people worse off than under the reference
    worst: worst_off.WorstUsers | None = None
    best_of: dict[int, BestOf] = field(default_factory=dict)  # by shots, where there are candidates to choose from
    written: dict[int, WrittenScores] = field(default_factory=dict)  # of policies: by shots, the smallest and largest
    costs: dict[str, float] = field(default_factory=dict)
    users: pl.DataFrame | None = None  # person, asked, accuracy, gain


@dataclass(frozen=True)
class TaskBoard:
    """One task setting: its verdict, and its rows. Ranked rows come first, the best at the top."""

    task: Task
    task_keys: tuple[str, ...]  # of the prepared task under each of the suite's seeds; () where all methods refuse it
    label: str
    rows: tuple[Row, ...]
    people: int
    seeds: int
    note: str | None  # why there are no intervals: one or two seeds, or one person
    verdict: str
    refusals: dict[str, str]
    flags: tuple[str, ...]
    searches: tuple[str, ...]  # what each tuned method tried and chose
    # shots, a, b, value, se, df (the standard error's degrees of freedom), low, high: paired, in accuracy
    differences: pl.DataFrame
    code: tuple[str, ...] = ()  # states of the code that made its results, see `show KEY`

    @property
    def shots(self) -> int:
        """The largest number of shots, at which methods are ranked."""
        return max(self.task.shots)

    def difference(self, a: str, b: str) -> dict[str, float]:
        """Return the row of `differences` of two labels at the largest number of shots; `se` and `df` may be None."""
        both = (pl.col("a") == a) & (pl.col("b") == b) & (pl.col("shots") == self.shots)
        return self.differences.row(by_predicate=both, named=True)


@dataclass(frozen=True)
class AcrossRow:
    """One method across all tasks of a board.

    wins: the probability of a higher accuracy than another method drawn at random, on a task drawn at random. A tie is one
        half; settings of one task count together as one. The limits are over tasks.
    rank: by wins, then the best and the worst rank that the tasks allow, for all methods at once.
    families: by family of tasks, the interquartile mean over its tasks of the gain over the reference. The limits are over
        people and seeds of these tasks, and do not speak of other tasks.
    better_than: labels of the methods that it surely wins more than on tasks like these, for all pairs at once.
    variants: such as the method tuned, each as if it stood in the place of the method as it is.
    """

    label: str
    wins: Point
    rank: tuple[int, int, int]
    mean_rank: float  # mean over tasks of the rank by accuracy
    families: dict[str, Point]
    better_than: tuple[str, ...] = ()
    variants: tuple[AcrossRow, ...] = ()


@dataclass(frozen=True)
class Transfer:
    """How alike two families of tasks order the methods: Spearman's correlation of the methods' wins."""

    families: tuple[str, str]
    correlation: Point  # limits: methods and tasks are drawn again


@dataclass(frozen=True)
class ServingSet:
    """The methods that leave the smallest group of people who would all be better off with one other method."""

    labels: tuple[str, ...]
    left: float  # share of people, tasks counting alike, for whom `other` has a higher accuracy than each of the set
    other: str


@dataclass(frozen=True)
class Across:
    """A board across tasks; the best method comes first."""

    rows: tuple[AcrossRow, ...]
    verdict: str
    tasks: int
    families: dict[str, int]  # number of task settings of each family
    units: dict[str, str]  # unit of each family's gains
    left_out: dict[str, str]  # label of a method -> why it is not among the rows
    transfers: tuple[Transfer, ...]
    serving: tuple[ServingSet, ...]
    parts: dict[str, Across] = field(default_factory=dict)  # the same of the simulated tasks alone, and of the others


@dataclass(frozen=True)
class VariantChange:
    """What a variant of a method changes: its accuracy minus that of the method as it is."""

    label: str  # of the variant
    base: str  # label of the method as it is
    mean: Point  # over task settings, each alike; limits over people and seeds of these settings
    settings: dict[str, Point]  # by the label of the task setting; limits for the row alone


@dataclass(frozen=True)
class Board:
    """The leaderboard of a suite: all its task settings, and what they say together."""

    suite: Suite
    tasks: tuple[TaskBoard, ...]
    across: Across | None = None  # None with too few tasks
    unavailable: dict[str, str] = field(default_factory=dict)  # label of a task whose data or model is not here -> why
    variants: tuple[VariantChange, ...] = ()

    @property
    def results_digest(self) -> str:
        """16 hex digits of the suite's settings, the keys of its results and the flags."""
        keys = sorted(key for task in self.tasks for row in task.rows for key in row.keys)
        return hashlib.sha256(repr([self.suite.digest, keys, [t.flags for t in self.tasks]]).encode()).hexdigest()[:16]

    @cached_property
    def content_digest(self) -> str:
        """64 hex digits of all that the board says, also of numbers that other code would compute from the same results."""
        digest = hashlib.sha256(json.dumps([self.suite.title, self.as_dict(pairs=False)]).encode())
        for task in self.tasks:  # many, and their labels are those of the rows
            for numbers in task.differences.select(pl.selectors.numeric()).iter_columns():
                digest.update(numbers.to_numpy().tobytes())
        return digest.hexdigest()

    def as_dict(self, pairs: bool = True) -> dict:
        """Return plain values, as `--json` prints them. pairs: with the differences of each two methods."""
        return {
            "suite": self.suite.name,
            "digest": self.results_digest,
            "unavailable": self.unavailable,
            "across": self.across and dataclasses.asdict(self.across),
            "variants": [dataclasses.asdict(change) for change in self.variants],
            "tasks": [
                {
                    "task": t.label,
                    "fields": field_values(t.task),
                    "people": t.people,
                    "seeds": t.seeds,
                    "shots": t.shots,
                    "verdict": t.verdict,
                    "note": t.note,
                    "flags": t.flags,
                    "searches": t.searches,
                    "refusals": t.refusals,
                    **({"differences": t.differences.to_dicts()} if pairs else {}),
                    "rows": [
                        {
                            f.name: _as_plain_value(getattr(r, f.name))
                            for f in dataclasses.fields(r)
                            if f.name not in ("method", "users")
                        }
                        for r in t.rows
                    ],
                }
                for t in self.tasks
            ],
        }


def _as_plain_value(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, worst_off.WorstUsers | worst_off.WorseOff):
        return value._asdict()
    return {k: _as_plain_value(v) for k, v in value.items()} if isinstance(value, dict) else value


def setting_labels(things: list) -> dict:
    """Return a label for each task or method: its name, its fields that are not default, and those in which settings differ.

    Long values, such as a query, are cut in the middle, unless two labels would then be the same. A variant of a method has
    that method's label and its own name, such as `rfm tuned`.
    """
    variants = {thing: thing.variant_of for thing in things if isinstance(thing, Method) and thing.variant_of}
    if variants:
        plain = dict.fromkeys([thing for thing in things if thing not in variants] + list(variants.values()))
        labels = setting_labels(list(plain))
        labels |= {thing: f"{labels[base]} {thing.name}" for thing, base in variants.items()}
        alike = Counter(labels[thing] for thing in things)
        own = _labels_of_fields([thing for thing in variants if alike[labels[thing]] > 1])
        return {thing: own.get(thing, labels[thing]) for thing in things}
    return _labels_of_fields(things)


def _labels_of_fields(things: list) -> dict:
    """Return `setting_labels` of things that are no variants."""
    seen: dict[type, dict[str, list]] = {}  # the different values of each field
    for thing in things:
        of_class = seen.setdefault(type(thing), {})
        for name, value in field_values(thing).items():
            if value not in (values := of_class.setdefault(name, [])):
                values.append(value)
    whole: dict = {}
    cut: dict = {}
    for thing in things:
        default, values_of = field_values(type(thing)()), seen[type(thing)]
        changed = {k: v for k, v in field_values(thing).items() if v != default[k] or len(values_of[k]) > 1}
        texts = {k: " ".join(str(list(v) if isinstance(v, tuple) else v).split()) for k, v in changed.items()}
        for labels, most in ((whole, None), (cut, MAX_SHOWN_VALUE)):
            shown = ", ".join(f"{k}={_cut_in_the_middle(text, most)}" for k, text in texts.items())
            labels[thing] = f"{thing.name}({shown})" if shown else thing.name
    times = Counter(cut.values())
    return {thing: label if times[label] == 1 else whole[thing] for thing, label in cut.items()}


def _cut_in_the_middle(text: str, most: int | None) -> str:
    """Return a text of at most `most` characters (any number for None): its beginning, an ellipsis and its end."""
    if most is None or len(text) <= most:
        return text
    return f"{text[: most // 2]}…{text[len(text) - (most - 1 - most // 2) :]}"
