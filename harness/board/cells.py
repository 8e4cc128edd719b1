"""The cells of a task's methods, read from the store, and the scores that each method has by itself.

A cell is one person under one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa

from harness.board import best_of, text_worth
from harness.board.board import REFERENCE_METHOD, BestOf, Point, WrittenScores
from harness.board.results import load_score_table
from harness.method import Method
from harness.scores import stats, worst_off
from harness.scores.metrics import calibration_error
from harness.store.store import Store
from harness.task import Task
from harness.trials.trial import Trial

METRIC_LIMITS = {  # metrics, macro-averaged over users, with their smallest and largest possible values
    "accuracy": (0.0, 1.0),
    "sign_accuracy": (0.0, 1.0),  # only with ground truth
    "auc": (0.0, 1.0),
    "rank_correlation": (-1.0, 1.0),  # only with ratings
    "scale_error": (0.0, np.inf),  # only with ratings
    "log_loss": (0.0, np.inf),
    "brier": (0.0, 1.0),
}
BIN_COLUMNS = ("bin_n", "bin_p", "bin_y")
BOARD_PANEL = "test"
TRIALS_AT_ONCE = 200  # whose scores are in memory with all their panels: 50 MB with 100 people a panel
# scores of policies' texts that are never negative, with their largest possible value; the others have no limits
WRITTEN_MAXIMA = {"win": 1.0, "win_random": 1.0, "stopped": 1.0, "kl": np.inf, "tokens": np.inf}


@dataclass(frozen=True, eq=False)
class MethodCells:
    """One method's scores by cell (a person under a seed); all complete methods have the same order of cells."""

    person: np.ndarray
    seed: np.ndarray
    blocks: dict[tuple[int, bool], pl.DataFrame]  # (shots, swapped) -> a row per cell
    # shots -> counts, summed probabilities and summed labels of the calibration bins, each [seeds, CALIBRATION_BINS]
    bins: dict[int, np.ndarray]
    best_of_n: pl.DataFrame | None  # `best_of.best_of_n_outcomes`, a row per (shots, n, cell)
    written: pl.DataFrame | None  # `text_worth.text_outcomes`, a row per (shots, cell of a person with texts)
    # best of n for the people with texts, reported next to the texts: `text_worth.best_of_n_with_texts`, a row per
    # (shots, n, cell of a person with texts)
    best_of_n_with_texts: pl.DataFrame | None


def read_cells(
    store: Store,
    trials: Mapping[Method, list[Trial]],
    manifests: Mapping[str, dict],
    tasks: Mapping[int, dict],
    numbers: Mapping[int, np.ndarray],
) -> dict[Method, MethodCells]:
    """Return the cells of every method with a finished trial.

    manifests: of finished trials, by key.  tasks: manifests of the prepared task, by seed.  numbers: by seed, each
    person's number (harness.store.prepared.person_numbers).
    """
    finished = {
        method: sorted((t for t in own if t.key in manifests), key=lambda t: t.seed) for method, own in trials.items()
    }
    finished = {method: own for method, own in finished.items() if own}
    if not finished:
        return {}
    # of several settings of the reference method the first with all its trials, as for the gains
    settings = [method for method in trials if method.name == REFERENCE_METHOD]
    complete = [method for method in settings if len(finished.get(method, [])) == len(trials[method])]
    reference = next(iter(complete + settings), None)
    references = {t.seed: t for t in finished.get(reference, [])} if reference else {}
    blocks: dict[Method, dict[tuple[int, bool], pl.DataFrame]] = {method: {} for method in finished}
    bins: dict[Method, dict[int, np.ndarray]] = {method: {} for method in finished}
    at_once = max(1, TRIALS_AT_ONCE // len(tasks))
    for start in range(0, len(finished), at_once):
        methods = list(finished)[start : start + at_once]
        every = [(place, t) for place, method in enumerate(methods) for t in finished[method]]
        tables = [load_score_table(store, t.task_key, manifests[t.key]) for _, t in every]
        size = [len(table) for table in tables]
        joined = cast(pl.DataFrame, pl.from_arrow(pa.concat_tables(tables))).with_columns(
            method=pl.Series(np.repeat([place for place, _ in every], size)),
            seed=pl.Series(np.repeat([t.seed for _, t in every], size)),
        )
        joined = _with_persons(joined.filter(panel=BOARD_PANEL), numbers).sort("seed", "person")
        parts = joined.partition_by("method", "shots", "swapped", as_dict=True, maintain_order=True)
        for (place, shots, swapped), block in parts.items():
            if not swapped:
                bins[methods[place]][shots] = _bins_by_seed(block)
            blocks[methods[place]][shots, swapped] = block.drop("panel", *BIN_COLUMNS)  # most of the memory
    found = {}
    for method, own in blocks.items():
        any_block = next(iter(own.values()))
        outcomes = _outcomes(store, finished[method], manifests, tasks, references, numbers)
        person, seed = any_block["person"].to_numpy(), any_block["seed"].to_numpy()
        found[method] = MethodCells(person, seed, own, bins[method], **outcomes)
    return found


def _bins_by_seed(block: pl.DataFrame) -> np.ndarray:
    """Return float64[3, seeds, CALIBRATION_BINS] from a block whose rows are in the order of seeds."""
    starts = np.flatnonzero(np.diff(block["seed"].to_numpy(), prepend=-1))
    return np.stack([np.add.reduceat(block[name].to_numpy(), starts, 0, float) for name in BIN_COLUMNS])


def _outcomes(
    store: Store,
    trials: list[Trial],
    manifests: Mapping[str, dict],
    tasks: Mapping[int, dict],
    references: Mapping[int, Trial],
    numbers: Mapping[int, np.ndarray],
) -> dict[str, pl.DataFrame | None]:
    """Return the outcomes of a method's choices and texts; None where it has none, which the manifests say."""
    found: dict[str, list[pl.DataFrame | None]] = {"best_of_n": [], "written": [], "best_of_n_with_texts": []}
    for trial in trials:
        if "test.choices.npy" in tasks[trial.seed]["files"]:
            found["best_of_n"].append(best_of.best_of_n_outcomes(store, trial, references.get(trial.seed)))
        if "written.arrow" in manifests[trial.key]["files"]:
            found["written"].append(text_worth.text_outcomes(store, trial))
            found["best_of_n_with_texts"].append(text_worth.best_of_n_with_texts(store, trial))
    order = {"best_of_n": ("shots", "n"), "written": ("shots",), "best_of_n_with_texts": ("shots", "n")}
    joined: dict[str, pl.DataFrame | None] = {}
    for name, outcomes in found.items():
        seeds = [t.seed for t in trials] if outcomes else []
        parts = [
            _with_persons(table.with_columns(seed=pl.lit(seed)), numbers)
            for seed, table in zip(seeds, outcomes, strict=True)
            if table is not None
        ]
        joined[name] = pl.concat(parts, how="diagonal").sort(*order[name], "seed", "person") if parts else None
    return joined


def _with_persons(table: pl.DataFrame, numbers: Mapping[int, np.ndarray]) -> pl.DataFrame:
    """Replace the column `person`, a row of one build's users, by numbers that are the same under all seeds."""
    seeds = list(numbers)
    start = np.cumsum([0, *(len(numbers[seed]) for seed in seeds)])
    offset = np.zeros(max(seeds) + 1, int)
    offset[seeds] = start[:-1]
    person = np.concatenate(list(numbers.values()))[offset[table["seed"].to_numpy()] + table["person"].to_numpy()]
    return table.with_columns(person=pl.Series(person, dtype=pl.Int64))


def scores_of_methods(cells: Mapping[Method, MethodCells], task: Task, complete: set[Method]) -> dict[Method, dict]:
    """Return each method's scores that need no other method: curves, swap control, worst users, best of n and texts.

    complete: the methods with all their trials; others have no limits. Methods with the same cells are computed at once.
    """
    alike: dict[tuple, list[Method]] = {}
    for method, own in cells.items():
        known = tuple(m for m in METRIC_LIMITS if not own.blocks[task.shots[0], False][m].null_count())
        alike.setdefault((known, own.person.tobytes(), own.seed.tobytes()), []).append(method)
    found: dict[Method, dict] = {}
    for (known, *_), methods in alike.items():
        found |= _scores_on_same_cells({m: cells[m] for m in methods}, list(known), task, complete)
    return found


def _scores_on_same_cells(
    cells: dict[Method, MethodCells], known: list[str], task: Task, complete: set[Method]
) -> dict[Method, dict]:
    methods, first = list(cells), next(iter(cells.values()))
    limits = np.tile([METRIC_LIMITS[metric] for metric in known], (len(methods), 1)).T
    seeds = np.unique(first.seed)
    curves: dict[Method, dict[str, dict[int, Point]]] = {m: {metric: {} for metric in (*known, "ece")} for m in methods}

    def put(names: list[str], shots: int, found: stats.Estimate, least: np.ndarray, most: np.ndarray) -> None:
        """Write estimates of shape [methods x names] into the curves."""
        ends = np.clip(found.interval(), least, most)
        for i, (method, name) in enumerate((m, name) for m in methods for name in names):
            low, high = (finite_or_none(x[i]) if method in complete else None for x in ends)
            curves[method][name][shots] = Point(float(found.value[i]), low, high)

    for shots in task.shots:
        blocks = [cells[m].blocks[shots, False] for m in methods]
        values = np.stack([block[metric].to_numpy() for block in blocks for metric in known])
        put(known, shots, stats.estimate_means(values, first.person, first.seed), *limits)
        bins = np.stack([cells[m].bins[shots] for m in methods], 1)
        # one value per seed, so its interval is over seeds
        error = stats.estimate_means(calibration_error(*bins), np.arange(len(seeds)), seeds)
        put(["ece"], shots, error, np.array(0.0), np.array(1.0))
    last = max(task.shots)
    person_code = np.unique(first.person, return_inverse=True)[1]
    found = {}
    for method in methods:
        own, block = cells[method], cells[method].blocks[last, False]
        count, swapped = block["asked"].to_numpy(), own.blocks.get((last, True))
        asked, correct = (np.bincount(person_code, x) for x in (count, count * block["accuracy"].to_numpy()))
        whole = method in complete
        found[method] = {
            "curves": curves[method],
            "swapped": None if swapped is None else cast(float, swapped["accuracy"].mean()),
            "worst": worst_off.worst_users_accuracy(correct, asked.astype(int)),
            "best_of": {} if own.best_of_n is None else _best_of_n_scores(own, own.best_of_n, whole),
            "written": {} if own.written is None else _written_scores(own.written, own.best_of_n_with_texts, whole),
        }
    return found


def _best_of_n_scores(cells: MethodCells, outcomes: pl.DataFrame, complete: bool) -> dict[int, BestOf]:
    found = {}
    for (shots,), table in outcomes.partition_by("shots", as_dict=True, maintain_order=True).items():
        counts = table["n"].unique(maintain_order=True).to_list()

        def by_n(name: str, table=table, counts=counts) -> np.ndarray:
            """Return a column as float64[counts, cells]."""
            return table[name].to_numpy().reshape(len(counts), -1)

        def points(values: np.ndarray, least: float, counts=counts) -> dict[int, Point]:
            score = stats.estimate_means(values, cells.person, cells.seed)
            low, high = np.clip(score.interval(), least, 1)
            limits = [
                (finite_or_none(a), finite_or_none(b)) if complete else (None, None)
                for a, b in zip(low, high, strict=True)
            ]
            return {n: Point(float(v), *ends) for n, v, ends in zip(counts, score.value, limits, strict=True)}

        def worse(name: str) -> float:
            return share_below_zero(means_by_person(cells, by_n(name)[-1:]))

        # possible_gain: the utility of the best candidate minus the mean of all candidates, the same for every n
        gain, possible_gain = by_n("gain"), by_n("room")[0]
        if possible_gain.mean() <= 0:
            return {}  # all candidates are worth the same
        peak = best_of.overoptimisation_peak(gain, cells.person, cells.seed)
        # whether the choices of `shared`, the reference method, are known under every seed
        has_shared = "win_shared" in table.columns and not table["win_shared"].null_count()
        found[shots] = BestOf(
            gain=points(best_of.normalised_gain(gain, possible_gain), -np.inf),
            win_random=points(by_n("win_random"), 0),
            win_shared=points(by_n("win_shared"), 0) if has_shared else {},
            worse_random=worse("gain"),
            worse_shared=worse("over_shared") if has_shared else None,
            overoptimised_at=None if peak is None or not complete else counts[peak],
        )
    return found


def _written_scores(written: pl.DataFrame, best_of_n: pl.DataFrame | None, complete: bool) -> dict[int, WrittenScores]:
    """Return the scores of a policy's texts by shots, with intervals over people and seeds."""
    found = {}
    for (shots,), table in written.partition_by("shots", as_dict=True, maintain_order=True).items():
        person, seed = table["person"].to_numpy(), table["seed"].to_numpy()

        def points(values: dict, person=person, seed=seed) -> dict:
            score = stats.estimate_means(np.stack(list(values.values())), person, seed)
            least = [0 if name in WRITTEN_MAXIMA else -np.inf for name in values]
            low, high = np.clip(score.interval(), least, [WRITTEN_MAXIMA.get(name, np.inf) for name in values])
            limits = [
                (finite_or_none(a), finite_or_none(b)) if complete else (None, None)
                for a, b in zip(low, high, strict=True)
            ]
            return {k: Point(float(v), *ends) for k, v, ends in zip(values, score.value, limits, strict=True)}

        # above: utility of the text minus the mean of all candidates.  room: the same of the best candidate.  Both are
        # used for the normalised gain only (text_worth.worth_of_texts).
        known = [c for c in table.columns if c not in ("person", "seed", "shots", "above", "room")]
        scores = {name: table[name].to_numpy() for name in known if not table[name].null_count()}
        choices = {}
        if "room" in table.columns and (possible_gain := table["room"].to_numpy()).mean() > 0:
            scores["normalised"] = best_of.normalised_gain(table["above"].to_numpy(), possible_gain)
            if best_of_n is not None:
                chosen = best_of_n.filter(shots=shots).partition_by("n", as_dict=True, maintain_order=True)
                choices = {
                    n: best_of.normalised_gain(part["gain"].to_numpy(), possible_gain) for (n,), part in chosen.items()
                }
        found[shots] = WrittenScores(points(scores), points(choices) if choices else {})
    return found


def share_below_zero(values: np.ndarray | pl.Series) -> float:
    """Return the share of values below 0, not counting rounding errors."""
    return float((np.asarray(values) < -1e-12).mean())


def means_by_person(cells: MethodCells, values: np.ndarray) -> np.ndarray:
    """Return float64[rows of `values`, people]: each person's mean over the seeds that tested them, people ascending."""
    people, code = np.unique(cells.person, return_inverse=True)
    return np.stack([np.bincount(code, row, minlength=len(people)) for row in values]) / np.bincount(code)


def finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
