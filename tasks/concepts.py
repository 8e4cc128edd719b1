"""Gaussian clusters of prompts, two per concept, each answered by a token (Generalization of DPO, section 4.1)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import brentq

from harness.data import Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.method import State, Users
from harness.task import Task, split_in_order

# Times of the diagnostics in units of tau_1 of one concept, so that all K are comparable.
DIAGNOSTIC_TIMES = (1, 2, 5, 16)


@dataclass(frozen=True)
class Concepts(Task):
    """A simulation with prompts g(x) ~ N(+-c_i + b, v^2 I_d) for K concepts, where b = l_b e_1 and c_i = e_{1 + i}.

    Each of the 2K clusters has Q training prompts. A prompt is answered by one of two tokens: the + cluster of a
    concept prefers the first and its - cluster the second, without noise. An item's features are the Kronecker product
    y (x) g(x) of the token's one-hot vector y and the prompt: V d numbers for V tokens. The weights of a linear reward
    on them are an unembedding matrix W.
    tokens: "distinct" gives each concept its own two tokens. With "yes_no" all concepts share Yes and No, which
    violates the paper's condition that "no two pairs of clusters have the same responses".

    Theorem 4.1 assumes width <= 1, d <= 5 Q and Z <= min(1 / (4 l_b^2), Q^(1/4) - 2), with Z the number of times a
    token is used. The bound Q^(1/4) - 2 allows even Z = 1 only for Q of 81 or more. In experiments, margins also stay
    in the theorem's band at Q = 40.

    There is only one preference, so there is one user and no context. Person 0 is the training user; persons 1 and 2
    are validation and test users with the same preference and new prompts. Confidence intervals are over seeds.
    """

    family = "simulated"
    paper = "Im and Li 2024, Generalization of DPO"

    K: int = 4  # concepts
    Q: int = 40  # training prompts in each of the 2K clusters
    width: float = 1.0  # v in units of 1 / (4 sqrt(Q)); 1 is the largest that theorem 4.1 allows
    l_b: float = 0.5  # norm of the shared part of all prompts; 1/2 is the largest that theorem 4.1 allows at Z = 1
    feature_dim: int = 64  # d, the dimension of a prompt
    tokens: Literal["distinct", "yes_no"] = "distinct"

    shots: tuple[int, ...] = (0,)
    queries: int = 160  # new prompts per panel: five of each cluster at 16 concepts

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.K, self.Q) < 1 or self.feature_dim < self.K + 1 or self.width <= 0 or self.l_b < 0:
            raise UserError(
                "concepts: K and Q must be at least 1, feature_dim more than K, width above 0, l_b at least 0",
                "the K concepts and the shared part need K + 1 orthogonal directions: raise feature_dim or lower K",
            )
        if max(self.shots) > 0:
            raise UserError("concepts: shots must be [0], because all users have the same preference", "shots = [0]")

    @property
    def cluster_sd(self) -> float:
        """The standard deviation of a cluster along every axis."""
        return self.width / (4 * np.sqrt(self.Q))

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        # pairs of the training user (with queries for the panel `seen`), the validation user and the test user
        per_person = [2 * self.K * self.Q + self.queries, self.queries, self.queries]
        user = np.repeat(np.arange(3), per_person)
        # each cluster has Q training prompts
        cluster = np.concatenate([np.arange(n) for n in per_person]) % (2 * self.K)
        concept, aligned = cluster // 2, cluster % 2 == 0
        g = self.cluster_sd * rng.normal(size=(len(user), self.feature_dim))
        g[:, 0] += self.l_b
        g[np.arange(len(g)), 1 + concept] += np.where(aligned, 1, -1)
        first = 2 * concept if self.tokens == "distinct" else np.zeros_like(concept)
        V = 2 * self.K if self.tokens == "distinct" else 2
        features = np.zeros((len(g), 2, V, self.feature_dim), dtype=np.float32)  # [prompt, answer, token, d]
        for token in (0, 1):
            features[np.arange(len(g)), token, first + token] = g
        utility = np.column_stack([aligned, ~aligned]).astype(np.float32).reshape(-1, 1)
        side = rng.integers(2, size=len(g))  # which token is on the left
        left, right = 2 * np.arange(len(g)) + side, 2 * np.arange(len(g)) + 1 - side
        one = np.ones((3, 1), dtype=np.float32)
        items = Items(features.reshape(2 * len(g), V * self.feature_dim), columns_share_unit=True)
        truth = Truth(one, utility, 0.0, one[:1])
        return PreferenceDataset.from_pairs(user, left, right, aligned == (side == 0), items, truth=truth)

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        return split_in_order(data, 1, self.queries)

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        """Return diagnostics of a method whose state has `weights` over `times`, with `beta` and `tau`; {} for others.

        inside_band: share of training pairs whose margin is inside [r^L, r^U] at every recorded time up to tau_1;
        left out if no such time is recorded.
        mean_margin_5tau, loss_5tau, accuracy_5tau: means over training pairs at five times the tau_1 of ONE concept, a
        time that does not depend on K. Likewise at the other DIAGNOSTIC_TIMES that were reached. Each also with the
        prefix `test_`.
        bound: eq. 11, an upper bound of the error rate. It is below 1, and so says something, only for Q above
        `bound_from_Q`.
        tau_1: the time of theorem 4.1 for K concepts.
        """
        if not {"times", "weights", "beta", "tau"} <= state.keys():
            return {}
        times, pace = state["times"].numpy(), float(state["beta"] ** 2 / state["tau"])
        unit = np.log(3) / (5 * pace)  # tau_1 = N tau ln 3 / (10 Q beta^2) with N = 2Q
        end = times[-1] * (1 + 1e-9)  # tolerates rounding errors
        early = (times > 0) & (times <= self.K * unit * (1 + 1e-9))
        lower, upper = margin_limits(times[early, None], self.K, pace)
        bound, from_Q = generalisation_bound(self.K, self.Q), smallest_informative_q(self.K)
        found = {"tau_1": self.K * unit, "bound": bound, "bound_from_Q": from_Q}
        for name, pairs in (("", splits.train), ("test_", splits.panels["test"].query)):
            gap = torch.from_numpy(np.where(pairs.label[:, None] >= 0.5, pairs.gap, -pairs.gap))
            margins = (state["weights"].float() @ gap.T).double().numpy()  # [times, pairs], preferred minus rejected
            curves = {
                "mean_margin": margins.mean(1),
                "loss": np.logaddexp(0, -margins).mean(1),
                "accuracy": (margins > 0).mean(1),
            }
            reached = [n for n in DIAGNOSTIC_TIMES if n * unit <= end]
            found |= {f"{name}{w}_{n}tau": np.interp(n * unit, times, c) for w, c in curves.items() for n in reached}
            if self.K * unit <= end and early.any():
                inside = (lower <= margins[early]) & (margins[early] <= upper)
                found[f"{name}inside_band"] = inside.all(0).mean()
        return {name: float(value) for name, value in found.items()}

    def margin_band(self, times: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return r^L and r^U at the times, NaN after tau_1, where the theorem ends; for the figure of margins."""
        pace = float(state["beta"] ** 2 / state["tau"])
        lower, upper = margin_limits(times, self.K, pace)
        late = times > self.K * np.log(3) / (5 * pace) * (1 + 1e-9)
        return np.where(late, np.nan, lower), np.where(late, np.nan, upper)


def margin_limits(times: np.ndarray, K: int, pace: float) -> tuple[np.ndarray, np.ndarray]:
    """Return r^L and r^U of theorem 4.1 at times up to tau_1; pace is beta^2 / tau, and Q / N is 1 / (2K)."""
    return pace * times / (8 * K), 5 * pace * times / K


def generalisation_bound(K: int, Q: float) -> float:
    """Return eq. 11, 2 K Q^2 exp(-Q^(1/4) / 6): the paper's bound on the error rate on unseen prompts at tau_1."""
    return float(2 * K * Q**2 * np.exp(-(Q**0.25) / 6))


def smallest_informative_q(K: int) -> float:
    """Return the Q above which eq. 11 is below one; the bound is vacuous for smaller Q."""
    root = brentq(lambda x: np.log(2 * K) + 8 * np.log(x) - x / 6, 48, 1e4)  # x = Q^(1/4); the left side peaks at 48
    return float(root**4)
