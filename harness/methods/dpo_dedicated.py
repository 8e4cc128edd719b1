"""One DPO policy per true kind of user: an upper reference that is not ranked (Few-shot Steerable, 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from sklearn.cluster import KMeans

from harness import parallel
from harness.data import Items, Pairs, Panel, require_truth
from harness.errors import UserError
from harness.learning import policy
from harness.method import Predictor, Run, State, Users
from harness.methods.dpo import Dpo, LoadedDpo


@dataclass(frozen=True)
class DpoDedicated(Dpo):
    """A separate `dpo` policy for every kind of user, each trained on the users of that kind; users' kinds are known.

    Kinds are the distinct true weights (`Truth.users`) of the training users; if there are more than `kinds`, k-means
    groups them. Each kind needs its own training run.

    Departures: those of `dpo`.

    State: `kinds` float32[kinds, k], the kinds' weights, and each policy's tensors as `<kind>/<name>`.
    Users: the number of each user's kind.
    """

    family = "line"
    paper = "Kobalczyk et al. 2024, Few-shot Steerable Alignment"

    privileged = True

    kinds: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kinds < 1:
            raise UserError(f"dpo_dedicated: kinds = {self.kinds} is below 1", "kinds = 2")

    @property
    def estimated_seconds(self) -> float:
        return self.kinds * super().estimated_seconds

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        truth = require_truth(run.truth)
        utility = truth.users[train.people]
        kinds = np.unique(utility, axis=0)
        if len(kinds) > self.kinds:
            kinds = KMeans(self.kinds, n_init=10, random_state=0).fit(utility).cluster_centers_.astype(np.float32)
        kind = nearest_kind(utility, kinds)
        own_kind = nearest_kind(truth.users[validation.query.people], kinds)
        state = {"kinds": torch.from_numpy(kinds)}
        for number in range(len(kinds)):
            users = np.flatnonzero(own_kind == number)
            own = Panel(validation.context.of(users), validation.query.of(users))
            below = replace(run, checkpoint=run.checkpoint and run.checkpoint / str(number), curves={})
            found = super().fit(train.of(np.flatnonzero(kind == number)), own, below)
            state |= {f"{number}/{name}": tensor for name, tensor in found.items()}
            run.curves.update({f"{number}/{name}": values for name, values in below.curves.items()})
        return state

    @contextmanager
    def open_predictor(self, state: State, run: Run) -> Iterator[Predictor]:
        held = LoadedDedicated(self, state, run)
        try:
            yield held
        finally:
            held.close()


class LoadedDedicated(Predictor):
    """The trained policies of all kinds, with one of them in memory at a time."""

    def __init__(self, method: DpoDedicated, state: State, run: Run) -> None:
        self.method, self.state, self.store, self.truth = (
            method,
            state,
            policy.require_run_store(run),
            require_truth(run.truth),
        )
        self.number = -1
        self.held: LoadedDpo | None = None

    def policy_of_kind(self, number: int) -> LoadedDpo:
        """Return the policy of one kind; load it in place of another if needed."""
        if self.number != number or self.held is None:
            self.close()
            self.number, self.held = number, LoadedDpo(self.method, state_of_kind(self.state, number), self.store)
        return self.held

    def close(self) -> None:
        """Free the loaded policy's memory."""
        if self.held is not None:
            self.held.close()
        self.held = None

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.from_numpy(nearest_kind(self.truth.users[context.people], state["kinds"].numpy()))[:, None],)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        kind, user, item = users[0][:, 0].numpy(), np.asarray(user), np.asarray(item)
        found = torch.zeros(len(item), dtype=torch.float64)
        for number in np.unique(kind[user]):
            rows = np.flatnonzero(kind[user] == number)
            everybody = (torch.zeros(1, 0),)
            of_one = self.policy_of_kind(number).reward({}, everybody, items, np.zeros(len(rows), np.int64), item[rows])
            found[torch.from_numpy(rows)] = of_one
        return found

    def generate(
        self, state: State, users: Users | None, user: np.ndarray, prompts: Sequence[str], run: Run
    ) -> pa.Table:
        mine = np.arange(len(prompts))[parallel.worker_rank() :: parallel.worker_count()]
        asked, seeds = [prompts[row] for row in mine], [(run.seed, row) for row in mine.tolist()]
        if users is None:
            return parallel.gather_tables(self.policy_of_kind(0).responses_for(None, asked, seeds))
        kind = users[0][torch.from_numpy(np.asarray(user)[mine]).long(), 0].numpy()
        tables, rows = [], []
        for number in np.unique(kind):
            own = np.flatnonzero(kind == number)
            below = (torch.zeros(len(own), 0),)
            tables.append(
                self.policy_of_kind(number).responses_for(
                    below, [asked[row] for row in own], [seeds[row] for row in own]
                )
            )
            rows.append(own)
        return parallel.gather_tables(pa.concat_tables(tables).take(np.argsort(np.concatenate(rows))))

    def export(self, state: State, folder: Path) -> str:
        kinds = range(len(state["kinds"]))
        return "\n".join(
            self.policy_of_kind(number).export(state_of_kind(state, number), folder / str(number)) for number in kinds
        )


def nearest_kind(users: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return int64[n]: the nearest of the kinds float32[m, k] for each of the users float32[n, k]."""
    return ((users[:, None] - kinds) ** 2).sum(2).argmin(1)


def state_of_kind(state: State, number: int) -> State:
    """Return the state of one kind's policy."""
    return {name.partition("/")[2]: t for name, t in state.items() if name.startswith(f"{number}/")}
