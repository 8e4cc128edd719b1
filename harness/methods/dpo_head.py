"""A linear unembedding trained with DPO on fixed features, with margins over time (Generalization of DPO, 2024)."""

from dataclasses import dataclass
from math import ceil, log

import torch
from torch.nn.functional import softplus

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.learning.linear import LinearMethod
from harness.method import Run, State

# Length of a Runge-Kutta step, as a share of the inverse of the flow's fastest rate. The error of a step is then below
# 1e-7 of a margin.
STEP_SIZE = 0.1
MAX_STEPS = 100_000  # more steps take over a minute, and are needed only if features are far larger than 1


@dataclass(frozen=True)
class DpoHead(LinearMethod):
    """The gradient flow of the DPO loss over the last layer W, from the reference W_0 (eq. 4 and 6-10).

    With item features y (x) g(x), as in task `concepts`, the log-ratio of two
    tokens is linear, the normaliser cancels, and the margin of a pair is <u, gap of features> with u = beta (W - W_0).
    For any features, eq. 6 then reads
        tau du/dt = beta^2 / N  sum_i [label_i - sigmoid(<u, gap_i>)] gap_i
    which also allows soft labels. (The paper's eq. 7 lacks the factor 1/N.) The flow has one variable per pair (eq. 10). Where n <= d, it uses the gaps' n x n
    Gram matrix. The flow is solved by fourth-order Runge-Kutta with steps far below the inverse of the fastest rate.
    The reward is the implicit reward at `horizon`, the same for all users; the context is ignored.

    Departures: none from eq. 6 to 10 with one-token responses. Responses of many tokens (eq. 12 to 16) are not
    followed, and the features stay fixed, where section 5 fine-tunes the whole model.

    State: `times` float64[T], `weights` float32[T, d] (u over time), `margins` float32[T, n training pairs] (preferred
    minus rejected), `beta`, `tau`. Curves: loss, accuracy and mean margin on training and on validation pairs.
    """

    family = "linear"
    paper = "Im and Li 2024, Generalization of DPO"

    beta: float = 0.1
    tau: float = 1.0  # time constant: larger is slower
    horizon: float = 320 * log(3)  # training time: 16 times tau_1 of one concept (theorem 4.1) at this beta and tau
    records: int = 64  # equally spaced times after 0 at which weights and margins are kept

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.beta, self.tau, self.horizon) <= 0 or self.records < 1:
            raise UserError(
                "dpo_head: beta, tau and horizon must be above 0, records 1 or more", "for example beta = 0.1"
            )

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        X, y = torch.from_numpy(train.gap).double(), torch.from_numpy(train.label).double()
        n, d = X.shape
        dual = n <= d
        gram = X @ X.T if dual else X.T @ X
        pace = self.beta**2 / (self.tau * n)
        # an upper bound: row sums bound the eigenvalues, and 1/4 bounds the sigmoid's slope
        fastest = pace * float(gram.abs().sum(1).max()) / 4
        apart = self.horizon / self.records
        steps = max(1, ceil(apart * fastest / STEP_SIZE))
        if steps * self.records > MAX_STEPS:
            raise ValueError(
                f"{steps * self.records} steps are too many: scale the features down, or lower beta^2 horizon / tau"
            )

        def flow(a: torch.Tensor) -> torch.Tensor:
            """Return da/dt, where u = sum_i a_i gap_i."""
            return pace * (y - torch.sigmoid(gram @ a if dual else X @ (a @ X)))

        a = torch.zeros_like(y)
        path = [a]
        for _ in range(self.records):
            for _ in range(steps):
                a = runge_kutta_step(flow, a, apart / steps)
            path.append(a)
        weights = torch.stack(path) @ X
        margins = weights @ gaps_to_preferred(train).T
        unseen = weights @ gaps_to_preferred(validation.query).T
        for seen, new in zip(margins, unseen, strict=True):
            run.log(
                loss=softplus(-seen).mean().item(),
                accuracy=(seen > 0).double().mean().item(),
                margin=seen.mean().item(),
            )
            run.log(
                validation_loss=softplus(-new).mean().item(),
                validation_accuracy=(new > 0).double().mean().item(),
                validation_margin=new.mean().item(),
            )
        return {
            "mean": weights[-1],
            "root": torch.zeros(d, 0, dtype=torch.float64),  # no user differs from the mean
            "times": torch.arange(self.records + 1, dtype=torch.float64) * apart,
            "weights": weights.float(),
            "margins": margins.float(),
            "beta": torch.tensor(self.beta, dtype=torch.float64),
            "tau": torch.tensor(self.tau, dtype=torch.float64),
        }


def runge_kutta_step(flow, a: torch.Tensor, step: float) -> torch.Tensor:
    """Take one classical fourth-order step of da/dt = flow(a)."""
    k1 = flow(a)
    k2 = flow(a + step / 2 * k1)
    k3 = flow(a + step / 2 * k2)
    k4 = flow(a + step * k3)
    return a + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def gaps_to_preferred(pairs: Pairs) -> torch.Tensor:
    """Return float64[n, d]: features of the preferred item minus those of the other."""
    sign = torch.from_numpy(pairs.label >= 0.5).double() * 2 - 1
    return torch.from_numpy(pairs.gap).double() * sign.unsqueeze(1)
