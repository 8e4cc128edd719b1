"""Reward-feature model: shared features and user weights learned jointly (Barreto et al. 2025, eq. 5-8)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.nn.functional import softplus

from harness.data import Items, Pairs, Panel
from harness.errors import UserError
from harness.learning import networks
from harness.learning.factors import fit_factors, noise_spectral_norm, random_factors
from harness.learning.linear import LinearMethod
from harness.learning.priors import PRIOR_SCALES, best_prior_on_validation, empirical_prior
from harness.method import Run, State, Users
from harness.search_space import SearchSpace, Span

PAIRS_PER_STEP = 1024  # pairs in each step of `mlp`


@dataclass(frozen=True)
class Rfm(LinearMethod):
    """A reward r_h(x, y) = <phi(x, y), w_h>, with phi linear in the item's features or a network with one hidden layer.

    Training minimises the Bradley-Terry loss jointly over phi and all training users' weights (eq. 7), with an equal
    ridge on both, which is a nuclear-norm penalty on their product. The ridge is relative to the spectral norm of the
    labels' noise, so that one `decay` suits few and many people. Adaptation freezes phi and solves for w (eq. 8). The
    network's activation is tanh (gelu loses .015 on validation users of `raters` with a tanh truth). The network needs
    many answers: with 8,000 answers and 64 features it gains nothing over linear phi.

    Departures: there is no language model below phi, whose inputs are given features. Linear phi is fitted by L-BFGS,
    and the network by Adam, where the paper has gradient ascent. The ridge is on phi too, not on the weights alone. In
    adaptation w has a prior from the training users (James-Stein mean, second moment); the paper has none.
    """

    family = "linear"
    paper = "Barreto et al. 2025, Reward-Feature Models"
    version = 2
    search_space: ClassVar[SearchSpace] = {
        "dim": Span(2, 128, whole=True),
        "decay": Span(0.01, 1.0),
        "steps": Span(10, 200, whole=True),
    }

    dim: int = 32  # of phi
    features: Literal["linear", "mlp"] = "linear"
    hidden: int = 128  # width of the hidden layer; `mlp` only
    decay: float = 0.12  # relative to the noise's spectral norm; chosen on validation users of `low_rank` and `snacks`
    steps: int = 50  # of L-BFGS; `mlp` takes forty times as many, each of PAIRS_PER_STEP pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.hidden, self.steps) < 1 or self.decay < 0:
            raise UserError(
                "rfm: dim, hidden and steps must be at least 1, decay 0 or more", "the paper uses dim = 8, 32 and 128"
            )

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        return (self.fit_linear if self.features == "linear" else self.fit_mlp)(train, validation, run)

    def fit_linear(self, train: Pairs, validation: Panel, run: Run) -> State:
        """Fit phi linear in the items' features."""
        weights, basis = random_factors(train, self.dim, run.generator("rfm"))
        # from a small start, `steps` is enough also where people have thousands of pairs (`arguments`)
        weights = 0.1 * weights
        mean, root = empirical_prior(*fit_factors(train, weights, basis, self.decay, self.steps, run))
        return best_prior_on_validation([{"mean": mean, "root": scale * root} for scale in PRIOR_SCALES], validation)

    def fit_mlp(self, train: Pairs, validation: Panel, run: Run) -> State:
        """Fit phi as a network with one hidden layer."""
        x = torch.from_numpy(train.items.known_features[np.stack([train.left, train.right])])
        center = x.mean((0, 1))
        scale = (x - center).square().mean().sqrt().clamp(min=1e-6)
        x, y, user = (x - center) / scale, torch.from_numpy(train.label), torch.from_numpy(train.user).long()
        (_, n, d), n_users = x.shape, train.n_users
        ridge = self.decay * noise_spectral_norm(n, n_users, d, float((x[0] - x[1]).square().mean()))
        draw = run.generator("rfm")
        net = networks.initial_mlp("phi", [d, self.hidden, self.dim], draw)
        net["weights"] = 0.1 * torch.randn(n_users, self.dim, generator=draw)

        def loss(step: int) -> torch.Tensor:
            rows = torch.randint(n, (PAIRS_PER_STEP,), generator=draw)
            left, right = networks.apply_mlp(net, "phi", x[:, rows], torch.tanh)
            z = ((left - right) * net["weights"][user[rows]]).sum(1)
            return (softplus(z) - y[rows] * z).mean() + ridge / 2 / n * sum(t.square().sum() for t in net.values())

        net = networks.train_network(net, loss, 40 * self.steps, 3e-3, run)
        mean, root = empirical_prior(net.pop("weights").double(), torch.eye(self.dim, dtype=torch.float64))
        state = net | {"center": center, "scale": scale}
        seen = Panel(with_network_features(state, validation.context), with_network_features(state, validation.query))
        return state | best_prior_on_validation([{"mean": mean, "root": s * root} for s in PRIOR_SCALES], seen)

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return super().adapt(state, with_network_features(state, context), run)

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        if self.features == "linear":
            return super().reward(state, users, items, user, item)
        return super().reward(
            state, users, Items(network_features(state, items.known_features[item])), user, np.arange(len(item))
        )

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        return super().score(state, users, with_network_features(state, query))


def network_features(state: State, features: np.ndarray) -> np.ndarray:
    """Return float32[n, dim]: the learned features of items float32[n, d]."""
    x = (torch.from_numpy(features) - state["center"]) / state["scale"]
    return networks.apply_mlp(state, "phi", x, torch.tanh).detach().numpy()


def with_network_features(state: State, pairs: Pairs) -> Pairs:
    """Return the pairs with the network's features of their items.

    For linear phi the pairs are unchanged, because there the prior's `mean` and `root` contain phi.
    """
    if "phi.0.weight" not in state:
        return pairs
    items = Items(network_features(state, pairs.items.known_features[np.r_[pairs.left, pairs.right]]))
    row = np.arange(len(pairs), dtype=np.int32)
    return replace(pairs, items=items, left=row, right=row + np.int32(len(pairs)))
