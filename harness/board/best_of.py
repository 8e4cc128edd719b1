"""Best of n: methods choose among the same candidates for every user, and what their choices are truly worth."""

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
    """What the candidates are worth to the test users, each float[n_users, prompts, n]."""

    people: np.ndarray  # int32[n_users]
    utility: np.ndarray
    wins: np.ndarray  # probability of being preferred to one of the n at random (itself among them), a tie one half
    tie: float  # utilities that differ by no more are equal: traits counted in a text often are


def candidate_worth(prepared: PreparedTask) -> CandidateWorth | None:
    """What the test panel's candidates are worth; None where the task has no candidates or no ground truth."""
    panel, truth = prepared.splits.panels["test"], prepared.truth
    if panel.choices is None or truth is None:
        return None
    people = panel.query.people
    utility = (truth.users[people] @ truth.items[panel.choices.ravel()].T).reshape(len(people), *panel.choices.shape)
    tie = 1e-6 * float(np.abs(utility).max())  # some roundings of float32
    wins = np.zeros_like(utility)
    for j in range(utility.shape[2]):  # one opponent at a time: all at once would hold n times the memory
        wins += preference_share(utility, utility[..., j : j + 1], tie)
    return CandidateWorth(people, utility, wins / utility.shape[2], tie)


def preference_share(a: np.ndarray, b: np.ndarray, tie: float) -> np.ndarray:
    """1 where a is above b, 0 where below, and one half where they are equal."""
    return np.where(np.abs(a - b) <= tie, 0.5, a > b).astype(np.float32)


@lru_cache(64)  # a board reads the same for each of its methods, one a seed and task
def _stored_candidate_worth(store: Store, task_key: str) -> CandidateWorth | None:
    return candidate_worth(open_prepared_task(store, task_key))


def choices_by_shots(store: Store, trial: Trial) -> dict[int, np.ndarray]:
    """A finished trial's choices at each number of shots, as `choose` gave them."""
    content = safetensors.numpy.load(
        store.read_verified(committed_manifest(store, "trials", trial.key), "predictions.safetensors")
    )
    return {int(n.rpartition("/")[2]): v.astype(np.int64) for n, v in content.items() if n.startswith("choices/test/")}


def best_of_n_outcomes(store: Store, trial: Trial, reference: Trial | None = None) -> pl.DataFrame | None:
    """What a finished trial's choices are worth, as `worth_of_choices` has it; None without choices or ground truth."""
    if "test.choices.npy" not in committed_manifest(store, "tasks", trial.task_key)["files"]:
        return None  # and nothing is opened: boards of a thousand trials have none
    mine = choices_by_shots(store, trial)
    if not mine or (known := _stored_candidate_worth(store, trial.task_key)) is None:
        return None
    return worth_of_choices(known, mine, {} if reference is None else choices_by_shots(store, reference))


def worth_of_choices(known: CandidateWorth, mine: dict[int, np.ndarray], theirs: dict[int, np.ndarray]) -> pl.DataFrame:
    """A row per (shots, n, person), from choices by shots. All n compare with the same two: all candidates, and the best.

    gain: mean over prompts of the utility of the one chosen of the first n, less that of all candidates.
    room: of the best of all, less that of all.
    win_random: probability that the chosen is preferred to one of all candidates at random.
    win_shared, over_shared: the same, and the gap of utility, against what `theirs` chose of as many; absent without.
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
    """float64[..., C]: a value per cell whose mean is the ratio mean(gain) / mean(room), gain float[..., C], room float[C].

    A ratio of means: a person for whom no candidate is better than another weighs nothing, where a mean of his own
    ratios would be noise. The values are the ratio plus each cell's first-order influence on it (the delta method), so
    the variance of their mean, clustered as any score's, is that of the ratio.
    """
    ratio = gain.mean(-1, keepdims=True) / room.mean()
    return ratio + (gain - ratio * room) / room.mean()


def overoptimisation_peak(values: np.ndarray, person: np.ndarray, seed: np.ndarray) -> int | None:
    """Row of `values`[counts, C] with the largest mean, where the last row is surely below it; else None.

    Surely: at 95 % for all comparisons with the last row at once (max-t), since the peak is picked among them.
    """
    peak, last = int(values.mean(1).argmax()), len(values) - 1
    found = stats.paired_differences(values, person, seed)
    if found.note or peak == last:
        return None
    level = stats.simultaneous_level(values, person, seed, (np.arange(last), np.full(last, last)))
    return peak if found.p_values(found.family_df)[peak, last] < level else None
