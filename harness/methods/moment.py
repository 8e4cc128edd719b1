"""Whitened mean of choice (or choice over response time) times feature gap: the untrained control for ICRA."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from harness.data import Pairs, Panel
from harness.learning.factors import whitening_matrix
from harness.learning.linear import LinearMethod
from harness.method import Run, State, TaskFacts, Users

Signal = Literal["choice", "response_time"]


@dataclass(frozen=True)
class Moment(LinearMethod):
    """Closed-form weights w = 2 S^-1 s, with s the context mean of signal_i x_i and S = E[x xT] over training pairs.

    The signal is y = 2 label - 1, or y / seconds (ICRA, eq. 8: mean answer over mean time is the drift xT theta / 2, so
    that w tends to theta). Only S is estimated from training users. It does not depend on their weights, so the method
    is as good for people with other weights. For binary choices 2 S^-1 is the closed form to compare ICRA's trained
    matrix with.

    Departures: the paper has no such method; with times it is the minimiser of eq. 10. Response times are clipped from
    below at the training users' first percentile, so that accidental clicks do not outweigh considered answers.
    """

    family = "linear"
    paper = "Sun et al. 2026, ICRA"

    signal: Signal = "choice"

    def refuses(self, task: TaskFacts) -> str | None:
        return refusal_without_times(self.signal, task) or super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        white = whitening_matrix(train)
        return {"gamma": white @ white, "floor": shortest_seconds(train)}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (2 * mean_signed_gaps(context, self.signal, state["floor"]) @ state["gamma"].T,)


def refusal_without_times(signal: Signal, task: TaskFacts) -> str | None:
    """Return why the task is refused if the signal needs response times and the task has none, else None."""
    return "needs response times" if signal == "response_time" and not task.has_seconds else None


def shortest_seconds(train: Pairs) -> torch.Tensor:
    """Return float64[]: the first percentile of response times in seconds; zero where there are no times."""
    return torch.tensor(0.0 if train.seconds is None else float(np.quantile(train.seconds, 0.01)), dtype=torch.float64)


def answer_signals(pairs: Pairs, signal: Signal, floor: torch.Tensor) -> torch.Tensor:
    """Return float64[n]: each row's mean answer in [-1, 1]; for `response_time`, divided by the row's mean seconds.

    floor: seconds below this value count as this value.
    """
    y = 2 * torch.from_numpy(pairs.label).double() - 1
    return y if signal == "choice" else y / torch.from_numpy(pairs.seconds).double().clamp(min=floor)


def mean_signed_gaps(pairs: Pairs, signal: Signal, floor: torch.Tensor) -> torch.Tensor:
    """Return float64[n_users, d]: s = (1/n) sum of signal_i x_i over each user's rows; zero for users without rows."""
    rows = answer_signals(pairs, signal, floor)[:, None] * torch.from_numpy(pairs.gap)
    total = torch.zeros(pairs.n_users, rows.shape[1], dtype=torch.float64)
    total.index_add_(0, torch.from_numpy(pairs.user).long(), rows)
    return total / torch.from_numpy(np.diff(pairs.offsets)).clamp(min=1)[:, None]
