"""Simulated raters with 13 hidden features who agree, differ or oppose each other (Reward-Feature Models, 5.1)."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.data import Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.task import Task, split_in_order

FEATURE_COUNT = 13  # the paper's number of hand-made features of a response
# Norm of every rater's weights. With it, the true rewards predict .905 (linear) or .952 (tanh) of the labels.
WEIGHT_NORM = 4.0


@dataclass(frozen=True)
class Raters(Task):
    """A simulation with items x ~ N(0, I_d), 13 true features, and label ~ Bernoulli(sigmoid(gap / temperature)).

    The features are an orthonormal projection of x, or 3 tanh(1.5 x W1 / sqrt(d)) W2 / sqrt(d) with Gaussian W1, W2.
    A rater's weights are absolute values of normal draws, scaled to norm 4. Their signs depend on the scenario:
    `same_sign`, all positive; `independent_signs`, each drawn at random; `two_camps`, all positive for every other
    rater and all negative for the rest. This definition is the project's own; the paper computes its 13 features from
    UltraFeedback's texts.

    With `n_candidates`, there are `choice_prompts` sets of that many further items to choose the best of.
    """

    family = "simulated"
    paper = "Barreto et al. 2025, Reward-Feature Models"

    n_users: int = 40  # training raters
    new_users: int = 40  # validation raters, and as many test raters
    pairs_per_user: int = 200
    feature_dim: int = 64
    scenario: Literal["same_sign", "independent_signs", "two_camps"] = "two_camps"
    truth: Literal["linear", "tanh"] = "linear"
    temperature: float = 1.0
    n_candidates: int = 0  # in each of choice_prompts sets; 0: no candidates to choose from
    choice_prompts: int = 100

    shots: tuple[int, ...] = (0, 5, 20, 200)
    queries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.n_users, self.new_users, self.pairs_per_user) < 1 or self.temperature <= 0:
            raise UserError(
                "raters: counts must be at least 1, and temperature above 0",
                "for example n_users = 40, temperature = 1.0",
            )
        if self.feature_dim < FEATURE_COUNT:
            raise UserError(
                f"raters: feature_dim {self.feature_dim} is below the {FEATURE_COUNT} true features",
                "raise feature_dim",
            )
        if self.n_candidates < 0 or self.n_candidates == 1 or self.choice_prompts < 1:
            raise UserError(
                f"raters: n_candidates = {self.n_candidates} must be 0 or at least 2, and choice_prompts = "
                f"{self.choice_prompts} at least 1",
                "for example n_candidates = 16, choice_prompts = 100",
            )

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        counts = np.repeat([self.pairs_per_user, max(self.shots)], [self.n_users, 2 * self.new_users]) + self.queries
        user = np.repeat(np.arange(len(counts)), counts)
        n = 2 * len(user)
        x = rng.normal(size=(n, self.feature_dim))
        choices = None
        if self.n_candidates:
            choices = np.arange(self.choice_prompts * self.n_candidates, dtype=np.int32) + np.int32(n)
            own = np.random.default_rng([seed, self.n_candidates])  # the pairs are the same without candidates
            x = np.concatenate([x, own.normal(size=(len(choices), self.feature_dim))])
            choices = choices.reshape(self.choice_prompts, self.n_candidates)
        features = self.true_features(rng, x)
        w = self.draw_rater_weights(rng, len(counts))
        left, right = np.arange(0, n, 2), np.arange(1, n, 2)
        gap = np.einsum("nk,nk->n", features[left] - features[right], w[user]) / self.temperature
        label = rng.random(len(user)) < 1 / (1 + np.exp(-gap))
        population = self.draw_rater_weights(rng, 20_000)  # enough draws that the Bayes accuracy varies by under .002
        truth = Truth(
            w.astype(np.float32), features.astype(np.float32), self.temperature, population.astype(np.float32)
        )
        data = PreferenceDataset.from_pairs(
            user, left, right, label, Items(x.astype(np.float32), columns_share_unit=True), truth=truth
        )
        return replace(data, choices=choices)

    def true_features(self, rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
        """Return float64[n, 13]: the true features of the items float64[n, d]."""
        d = self.feature_dim
        if self.truth == "linear":
            return x @ np.linalg.qr(rng.normal(size=(d, FEATURE_COUNT)))[0]
        first, second = rng.normal(size=(d, d)), rng.normal(size=(d, FEATURE_COUNT))
        return 3 * np.tanh(1.5 * x @ first / np.sqrt(d)) @ second / np.sqrt(d)

    def draw_rater_weights(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw float64[n, 13]: weights of n raters."""
        size = np.abs(rng.normal(size=(n, FEATURE_COUNT)))
        sign = np.ones((n, FEATURE_COUNT))
        if self.scenario == "independent_signs":
            sign = rng.choice([-1, 1], size=(n, FEATURE_COUNT))
        elif self.scenario == "two_camps":
            sign[1::2] = -1
        return WEIGHT_NORM * sign * size / np.linalg.norm(size, axis=1, keepdims=True)

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        splits = split_in_order(data, self.n_users, self.queries)
        return replace(splits, panels={**splits.panels, "test": replace(splits.panels["test"], choices=data.choices)})
