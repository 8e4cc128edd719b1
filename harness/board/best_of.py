"""Best of n: the true utility of the candidates that methods choose; all methods and users have the same candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import safetensors.numpy

from harness.board.results import committed_manifest
from harness.scores import stats
from harness.store.prepared import PreparedTask, open_prepared_task
from harness.store.store import Store
from harness.trials.choose import candidate_counts
from harness.trials.trial import Trial


@dataclass(frozen=True, eq=False)
class CandidateWorth:
    """Worth of the candidates to the test users; arrays are float[n_users, prompts, n]."""

    people: np.ndarray  # int32[n_users]
    utility: np.ndarray
    wins: np.ndarray  # probability of being preferred to a random one of the n (itself included); a tie is one half
    tie: float  # utilities that differ by at most this count as equal; ties are common where utilities count words


def candidate_worth(prepared: PreparedTask) -> CandidateWorth | None:
    """Return the worth of the test panel's candidates; None where the task has no candidates or no ground truth."""
    panel, truth = prepared.splits.panels["test"], prepared.truth
    if panel.choices is None or truth is None:
        return None
    people = panel.query.people
    utility = (truth.users[people] @ truth.items[panel.choices.ravel()].T).reshape(len(people), *panel.choices.shape)
    tie = 1e-6 * float(np.abs(utility).max())  # some rounding errors of float32
    wins = np.zeros_like(utility)
    for j in range(utility.shape[2]):  # one opponent at a time; all at once would take n times the memory
        wins += preference_share(utility, utility[..., j : j + 1], tie)
    return CandidateWorth(people, utility, wins / utility.shape[2], tie)


def preference_share(a: np.ndarray, b: np.ndarray, tie: float) -> np.ndarray:
    """Return 1 where a is above b, 0 where below, and 0.5 where they differ by at most `tie`."""
    return np.where(np.abs(a - b) <= tie, 0.5, a > b).astype(np.float32)


@lru_cache(64)  # all methods of a board share one entry per task and seed
def _stored_candidate_worth(store: Store, task_key: str) -> CandidateWorth | None:
    return candidate_worth(open_prepared_task(store, task_key))


def choices_by_shots(store: Store, trial: Trial) -> dict[int, np.ndarray]:
    """Return a finished trial's choices at each number of shots, as `choose.choose_candidates` made them."""
    content = safetensors.numpy.load(
        store.read_verified(committed_manifest(store, "trials", trial.key), "predictions.safetensors")
    )
    return {int(n.rpartition("/")[2]): v.astype(np.int64) for n, v in content.items() if n.startswith("choices/test/")}


def best_of_n_outcomes(store: Store, trial: Trial, reference: Trial | None = None) -> pl.DataFrame | None:
    """Return the worth of a finished trial's choices (see `worth_of_choices`); None without choices or ground truth.

    reference: the trial whose choices `win_shared` compares with.
    """
    if "test.choices.npy" not in committed_manifest(store, "tasks", trial.task_key)["files"]:
        return None  # decided by the manifest alone, so boards of many trials without candidates open no file here
    mine = choices_by_shots(store, trial)
    if not mine or (known := _stored_candidate_worth(store, trial.task_key)) is None:
        return None
    return worth_of_choices(known, mine, {} if reference is None else choices_by_shots(store, reference))


def worth_of_choices(known: CandidateWorth, mine: dict[int, np.ndarray], theirs: dict[int, np.ndarray]) -> pl.DataFrame:
    """Return a row per (shots, n, person); for every n, choices are compared with the mean and best of all candidates.

    known: worth of the candidates.  mine: a method's choices by shots.  theirs: choices of the reference method.

    gain: mean over prompts of the utility of the choice among the first n, minus the mean utility of all candidates.
    room: mean over prompts of the utility of the best candidate, minus the same mean.
    win_random: probability that the choice is preferred to a random one of all candidates.
    win_shared, over_shared: probability that the choice is preferred to that of `theirs` among the same n, and the
        difference of utility; both columns are missing where `theirs` has no choices.
    """
    mean = known.utility.mean((1, 2), dtype=np.float64)
    room = known.utility.max(2).mean(1, dtype=np.float64) - mean
    tables = []
    for shots, places in mine.items():
        utility = np.take_along_axis(known.utility, places, 2)
        columns = {
            "gain": utility.mean(1, dtype=np.float64) - mean[:, None],
            "win_random": np.take_along_axis(known.wins, places, 2).mean(1, dtype=np.float64),
        }
        if shots in theirs:
            other = np.take_along_axis(known.utility, theirs[shots], 2)
            columns["win_shared"] = preference_share(utility, other, known.tie).mean(1, dtype=np.float64)
            over = utility - other
            columns["over_shared"] = np.where(np.abs(over) <= known.tie, 0, over).mean(1, dtype=np.float64)
        for k, n in enumerate(candidate_counts(known.utility.shape[2])):
            head = {"person": known.people, "room": room} | {name: values[:, k] for name, values in columns.items()}
            tables.append(pl.DataFrame(head).with_columns(shots=pl.lit(shots), n=pl.lit(n)))
    return pl.concat(tables)


def normalised_gain(gain: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Return float64[..., C], a value per cell, whose mean is the ratio mean(gain) / mean(room).

    gain: float[..., C].  room: float[C].

    In a ratio of means, a person to whom all candidates are worth the same has no weight; in a mean of ratios, this
    person would add noise. The values are the ratio plus each cell's first-order influence on the ratio (delta method).
    The clustered variance of their mean is therefore that of the ratio.
    """
    ratio = gain.mean(-1, keepdims=True) / room.mean()
    return ratio + (gain - ratio * room) / room.mean()


def overoptimisation_peak(values: np.ndarray, person: np.ndarray, seed: np.ndarray) -> int | None:
    """Return the row of `values`[counts, C] with the largest mean if the last row is significantly below it, else None.

    The test holds at 95 % for all comparisons with the last row at once (max-t), since the peak is selected from them.
    """
    peak, last = int(values.mean(1).argmax()), len(values) - 1
    found = stats.paired_differences(values, person, seed)
    if found.note or peak == last:
        return None
    level = stats.simultaneous_level(values, person, seed, (np.arange(last), np.full(last, last)))
    return peak if found.p_values(found.family_df)[peak, last] < level else None
