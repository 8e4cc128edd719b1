"""Chance: log-odds of zero for every pair, the floor of every metric."""

from dataclasses import dataclass

import numpy as np
import torch

from harness.data import Items, Pairs, Panel
from harness.method import Method, Run, State, Users


@dataclass(frozen=True)
class Chance(Method):
    """A constant prediction of zero: a tie counts one half in accuracy."""

    family = "control"

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        return {}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.zeros(context.n_users),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        return users[0][torch.from_numpy(user).long()]
