"""Worth of texts that policies write: true utility to the person, compared with the reference model's texts."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl

from harness.board.best_of import CandidateWorth, candidate_worth, choices_by_shots, preference_share, worth_of_choices
from harness.board.results import committed_manifest
from harness.scores.stats import fixed_derangement
from harness.store.prepared import PreparedTask, open_prepared_task
from harness.store.store import Store
from harness.task import Task
from harness.trials.trial import Trial
from harness.trials.write_texts import REFERENCE_SHOTS

# name of a mean in `PolicyTexts.policy_means` -> column of the policy's stored texts
POLICY_COLUMNS = {"kl": "kl", "tokens": "n_tokens", "stopped": "stopped", "fluency": "reference"}


@dataclass(frozen=True, eq=False)
class PolicyTexts:
    """Texts stored by `write_texts` for the first people and prompts: one for each (person, prompt, shots)."""

    people: np.ndarray  # int32[n_users]
    prompts: int
    rows: dict[int, pl.DataFrame]  # by shots, REFERENCE_SHOTS included; a row per (person, prompt), in that order

    def column_values(self, shots: int, column: str) -> np.ndarray:
        """Return a column as float64[n_users, prompts]."""
        return self.rows[shots][column].cast(pl.Float64).to_numpy().reshape(len(self.people), self.prompts)

    def policy_means(self, shots: int) -> dict[str, np.ndarray]:
        """Return means over prompts of the policy's own numbers, float64[n_users] each.

        kl: KL divergence from the reference model, in nats per response.  tokens: length.  stopped: share of responses
        that end by themselves.  fluency: log-probability under the reference model, in nats per token.  tokens_more,
        stopped_more, fluency_more: the same mean minus that of the reference model's texts.
        """
        own = {name: self.column_values(shots, column).mean(1) for name, column in POLICY_COLUMNS.items()}
        theirs = {
            name: self.column_values(REFERENCE_SHOTS, column).mean(1)
            for name, column in POLICY_COLUMNS.items()
            if name != "kl"
        }
        return own | {f"{name}_more": own[name] - value for name, value in theirs.items()}


def read_policy_texts(store: Store, trial: Trial) -> PolicyTexts | None:
    """Return the texts that a finished trial wrote; None where it wrote none."""
    manifest = committed_manifest(store, "trials", trial.key)
    if "written.arrow" not in manifest["files"]:
        return None
    table = pl.read_ipc(io.BytesIO(store.read_verified(manifest, "written.arrow")))
    rows = {shots: part for (shots,), part in table.partition_by("shots", as_dict=True, maintain_order=True).items()}
    people = rows[REFERENCE_SHOTS]["person"].unique(maintain_order=True).to_numpy()
    return PolicyTexts(people, len(rows[REFERENCE_SHOTS]) // len(people), rows)


def example_texts(store: Store, manifest: dict) -> list[tuple[str, str]]:
    """Return texts to the first prompt: the reference model's, and the policy's for two people at the most shots.

    Each text comes with a few words that say whose it is.
    """
    table = pl.read_ipc(io.BytesIO(store.read_verified(manifest, "written.arrow"))).filter(prompt=0)
    rows = pl.concat([table.filter(shots=REFERENCE_SHOTS).head(1), table.filter(shots=table["shots"].max()).head(2)])
    return [
        ("by the reference model" if shots == REFERENCE_SHOTS else f"for person {person}", text)
        for shots, person, text in rows.select("shots", "person", "response").iter_rows()
    ]


@lru_cache(1024)  # measuring utilities in texts is slow, and every board, claim and figure needs them
def text_outcomes(store: Store, trial: Trial) -> pl.DataFrame | None:
    """Return a row per (shots, person) of the texts of a finished trial; None where the trial wrote none.

    Columns: those of `PolicyTexts.policy_means`, and where there is ground truth those of `worth_of_texts`.
    """
    texts = read_policy_texts(store, trial)
    if texts is None:
        return None
    known = worth_of_texts(texts, trial.task, open_prepared_task(store, trial.task_key))
    return pl.concat(
        [
            pl.DataFrame({"person": texts.people} | texts.policy_means(shots) | known.get(shots, {}))
            .with_columns(shots=pl.lit(shots))
            for shots in texts.rows
            if shots != REFERENCE_SHOTS
        ]
    )  # fmt: skip


def worth_of_texts(texts: PolicyTexts, task: Task, prepared: PreparedTask) -> dict[int, dict[str, np.ndarray]]:
    """Return means over prompts of true utilities, by shots, float64[n_users] each; {} without ground truth for texts.

    gain: utility of the text written for the person, minus that of the reference model's text.
    win: how often the person prefers the text written for them to the reference model's; a tie is one half.
    swapped: the gain to this person of the text that was written for another person, by a fixed derangement.
    mean_user: the gain to the mean user (of the truth's population, or else of the test people), which shows what
        adapting to one person brings or costs the others. The column is missing where the mean user has no
        preferences, because opposite users are equally common.
    above, room: utility of the text, and of the best frozen candidate of the prompt, both minus the mean of all
        candidates, so that above / room is 0 for a random candidate and 1 for the best (see best_of.worth_of_choices).
    win_random: probability of being preferred to a random candidate.
    """
    found, truth = candidates_for_texts(texts, prepared), prepared.truth
    if found is None or truth is None:
        return {}
    if not task.has_text_attributes:
        return {}
    traits = {shots: task.text_attributes(rows["response"].to_list()) for shots, rows in texts.rows.items()}
    n = len(texts.people)
    everybody = (
        truth.users[prepared.splits.panels["test"].query.people] if truth.population is None else truth.population
    )
    attributes = {shots: values.reshape(n, texts.prompts, -1).astype(np.float64) for shots, values in traits.items()}
    own, mean_user = truth.users[texts.people].astype(np.float64), everybody.mean(0, dtype=np.float64)

    def utility(values: np.ndarray) -> np.ndarray:
        """Return float64[n_users, prompts]: the utility of each text to the person of its row."""
        return np.einsum("npk,nk->np", values, own)

    base, before = utility(attributes[REFERENCE_SHOTS]), attributes[REFERENCE_SHOTS] @ mean_user
    columns = {}
    for shots in texts.rows.keys() - {REFERENCE_SHOTS}:
        mine = utility(attributes[shots])
        wins = preference_share(mine[..., None], found.utility, found.tie).mean(2, dtype=np.float64)
        each = {
            "gain": mine - base,
            "win": preference_share(mine, base, found.tie).astype(np.float64),
            "above": mine - found.utility.mean(2, dtype=np.float64),
            "room": found.utility.max(2) - found.utility.mean(2, dtype=np.float64),
            "win_random": wins,
        }
        if mean_user.any():
            each["mean_user"] = attributes[shots] @ mean_user - before
        if n > 1:
            each["swapped"] = utility(attributes[shots][fixed_derangement(n)]) - base
        columns[shots] = {name: values.mean(1) for name, values in each.items()}
    return columns


def candidates_for_texts(texts: PolicyTexts, prepared: PreparedTask) -> CandidateWorth | None:
    """Return the worth of the frozen candidates, for the prompts and people of these texts; None if it is unknown."""
    found = candidate_worth(prepared)
    if found is None:
        return None
    n = len(texts.people)
    return CandidateWorth(
        found.people[:n], found.utility[:n, : texts.prompts], found.wins[:n, : texts.prompts], found.tie
    )


@lru_cache(1024)
def best_of_n_with_texts(store: Store, trial: Trial) -> pl.DataFrame | None:
    """Return the worth of the trial's own best-of-n choices for the people and prompts that its texts are for.

    A row per (shots, n, person), see `best_of.worth_of_choices`; None where the trial wrote no texts, or the worth of
    the candidates is unknown.
    """
    if (texts := read_policy_texts(store, trial)) is None:
        return None
    if (known := candidates_for_texts(texts, open_prepared_task(store, trial.task_key))) is None:
        return None
    n_people, prompts = len(texts.people), texts.prompts
    places = {n: p[:n_people, :prompts] for n, p in choices_by_shots(store, trial).items() if n in texts.rows}
    return worth_of_choices(known, places, {}) if places else None
