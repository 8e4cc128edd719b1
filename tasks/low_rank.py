"""Users whose 64 weights lie in a hidden 5-dimensional subspace (the setting of LoRe, 2025)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.data import Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.task import Task, split_in_order


@dataclass(frozen=True)
class LowRank(Task):
    """A simulation with feature gaps x ~ N(0, I_d) and utility gaps xT V w, where V is orthonormal, d x rank.

    label ~ Bernoulli(sigmoid(utility gap / temperature)). `weights` is the distribution of w: "gaussian" is
    N(0, (9 / rank) I), which gives the utility gap standard deviation 3, and "dirichlet" is 4.5 times Dirichlet(.3).
    """

    family = "simulated"
    paper = "Bose et al. 2025, LoRe"

    n_users: int = 500  # training users
    new_users: int = 200  # validation users, and as many test users
    pairs_per_user: int = 100
    feature_dim: int = 64
    rank: int = 5
    weights: Literal["gaussian", "dirichlet"] = "gaussian"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n_users, self.new_users, self.pairs_per_user, self.rank) < 1 or self.temperature <= 0:
            raise UserError(
                "low_rank: counts must be at least 1, and temperature above 0", "for example n_users = 500, rank = 5"
            )
        if self.rank > self.feature_dim:
            raise UserError(f"low_rank: rank {self.rank} is more than feature_dim {self.feature_dim}", "lower rank")

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        n_context = max(self.shots)
        counts = np.repeat([self.pairs_per_user, n_context], [self.n_users, 2 * self.new_users]) + self.queries
        user = np.repeat(np.arange(len(counts)), counts)
        V = np.linalg.qr(rng.normal(size=(self.feature_dim, self.rank)))[0]
        x = rng.normal(size=(2 * len(user), self.feature_dim)) / np.sqrt(2)  # so that gaps of two items have variance 1
        w = self.draw_users(rng, len(counts))
        utility = x @ V
        left, right = np.arange(0, len(x), 2), np.arange(1, len(x), 2)
        gap = np.einsum("nk,nk->n", utility[left] - utility[right], w[user]) / self.temperature
        label = rng.random(len(user)) < 1 / (1 + np.exp(-gap))
        population = self.draw_users(rng, 20_000)  # enough draws that the Bayes accuracy varies by under .002
        truth = Truth(w.astype(np.float32), utility.astype(np.float32), self.temperature, population.astype(np.float32))
        return PreferenceDataset.from_pairs(
            user, left, right, label, Items(x.astype(np.float32), columns_share_unit=True), truth=truth
        )

    def draw_users(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw float64[n, rank]: weights of n people."""
        if self.weights == "gaussian":
            return rng.normal(size=(n, self.rank)) * 3 / np.sqrt(self.rank)
        return 4.5 * rng.dirichlet(np.full(self.rank, 0.3), size=n)

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        return split_in_order(data, self.n_users, self.queries)
