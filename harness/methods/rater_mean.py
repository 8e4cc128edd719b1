"""Mean rating of the training people: a control that uses neither the person nor features of what is rated."""

from dataclasses import dataclass

import numpy as np
import torch

from harness.data import Items, Pairs, Panel
from harness.method import Method, Run, State, TaskFacts, Users


@dataclass(frozen=True)
class RaterMean(Method):
    """The mean of the ratings that training people gave an item, in standard deviations of all ratings.

    Every person's ratings are taken once, though an item may be in several of the person's pairs. An item that nobody
    rated gets the mean of all.
    """

    family = "control"

    def refuses(self, task: TaskFacts) -> str | None:
        return super().refuses(task) if task.has_ratings else "needs ratings"

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        n, (_, item, rating) = len(train.items), train.rated_items()
        times = np.bincount(item, minlength=n)
        total = np.bincount(item, rating - rating.mean(), minlength=n)
        mean = np.divide(total, times, out=np.zeros(n), where=times > 0)
        return {"mean": torch.from_numpy(mean / max(float(rating.std()), 1e-12))}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.zeros(context.n_users),)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        return state["mean"][torch.from_numpy(item).long()]
