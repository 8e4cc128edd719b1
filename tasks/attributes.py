"""Users who each want two of seven traits, or their opposites, in a text world of our own (PReF, appendix B.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import torch
from scipy.optimize import linear_sum_assignment

from harness.data import TEXT, Items, PreferenceDataset, Splits, Truth
from harness.method import State, Users
from harness.mistake import Mistake
from harness.task import Task, in_order
from harness.text import encode, encoder_dim
from harness.world import PROMPTS, TRAITS, respond, traits

CHOICES = [(i, j, sign) for i, j in combinations(range(len(TRAITS)), 2) for sign in (1, -1)]
WANTS = np.array([np.eye(len(TRAITS))[i] + sign * np.eye(len(TRAITS))[j] for i, j, sign in CHOICES], dtype=np.float32)
PEOPLE = np.concatenate([WANTS, -WANTS])  # float32[84, 7]: every signed choice of two traits; i + 42 opposes i


@dataclass(frozen=True)
class Attributes(Task):
    """Utility is the sum of a user's two signed trait scores, which are computed from the text (harness/world.py).

    The two responses of a pair answer one prompt, each steered to levels of its own. The paper lets GPT-4o play the
    user, once in each order of the two, and averages: here a label is the mean of two independent answers, one per
    order, Bernoulli(sigmoid(utility gap / temperature)), so it is 0, 1/2 or 1. Users judge the same `pairs`, each a
    random part of them without those he is exactly indifferent to; queries are pairs of prompts nobody was shown.
    Opposite users are kept together: else what most training users want most test users would not, and one reward for
    all would fall below chance. (Where `new_users` is odd one pair of opposites is a validation and a test user.)
    Features are `encoder`'s of the responses; with "numbers" the seven trait scores, rotated at random into
    `feature_dim` dimensions, with noise.
    """

    n_users: int = 54  # training users; with those below all 84
    new_users: int = 15  # validation users, and as many test users
    pairs_per_user: int = 200  # judged by each training user, of `pairs`; ties may leave fewer of nearly all
    pairs: int = 400  # distinct pairs to judge
    pool: int = 200  # judged by each new user, of `pairs`: what elicitation chooses from
    encoder: str = "tfidf-svd-128"  # or "numbers"
    feature_dim: int = 64  # of "numbers" alone
    noise: float = 0.2  # of "numbers" alone: its sd in every dimension of the difference of two items
    temperature: float = 0.65  # the oracle's AUC is then .94

    queries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder != "numbers":
            encoder_dim(self.encoder)
        if min(self.n_users, self.new_users, self.pairs_per_user, self.pairs, self.pool) < 1 or self.temperature <= 0:
            raise Mistake(
                "attributes: counts must be at least 1, and temperature above 0", "leave it out for the default"
            )
        if self.n_users + 2 * self.new_users > len(PEOPLE):
            raise Mistake(
                f"attributes: {self.n_users} + 2 x {self.new_users} users; there are {len(PEOPLE)} in all",
                "lower n_users or new_users",
            )
        if self.pairs + self.n_asked > len(PROMPTS):
            raise Mistake(
                f"attributes: {self.pairs} pairs to judge and {self.n_asked} to ask; there are {len(PROMPTS)} prompts",
                "lower pairs or queries",
            )
        if max(self.pairs_per_user, self.pool) > self.pairs:
            raise Mistake(
                f"attributes: someone judges {max(self.pairs_per_user, self.pool)} of {self.pairs} pairs",
                "lower pairs_per_user or pool, or raise pairs",
            )
        if self.feature_dim < len(TRAITS) or self.noise < 0:
            raise Mistake(
                f"attributes: feature_dim is below {len(TRAITS)}, or noise below 0", "feature_dim = 64 is P1's"
            )

    @property
    def n_asked(self) -> int:
        """Distinct pairs of the queries: enough that ties, about one in nine, never leave a user with too few."""
        return 2 * self.queries + 20

    def build(self, seed: int) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        half = rng.permutation(len(WANTS))
        new, train = np.split(np.column_stack([half, half + len(WANTS)]).ravel(), [2 * self.new_users])
        people = PEOPLE[np.concatenate([train[: self.n_users], new])]

        n = self.pairs + self.n_asked
        prompts = np.repeat(rng.permutation(len(PROMPTS))[:n], 2)
        seeds = rng.integers(2**31, size=2 * n)
        text = [respond(PROMPTS[p], int(s)) for p, s in zip(prompts, seeds, strict=True)]
        table = pa.table([[PROMPTS[p] for p in prompts], text], schema=TEXT)
        scores = traits(text)

        gap = people @ (scores[0::2] - scores[1::2]).T  # [people, pairs]
        tie = np.abs(gap) < 1e-4  # but for rounding: gaps are of words and phrases counted
        shown = np.repeat([self.pairs_per_user, self.pool], [self.n_users, 2 * self.new_users])
        judged = drawn(rng, ~tie[:, : self.pairs], shown)
        asked = drawn(rng, ~tie[:, self.pairs :], np.full(len(people), self.queries))
        user = np.concatenate([judged[0], asked[0]])
        pair = np.concatenate([judged[1], asked[1] + self.pairs])
        label = (rng.random((2, len(user))) < 1 / (1 + np.exp(-gap[user, pair] / self.temperature))).mean(0)

        features = self.rotated(rng, scores) if self.encoder == "numbers" else encode(table, self.encoder)
        truth = Truth(people, scores, self.temperature, PEOPLE)
        return PreferenceDataset.from_pairs(user, 2 * pair, 2 * pair + 1, label, Items(features, table), truth=truth)

    def rotated(self, rng: np.random.Generator, scores: np.ndarray) -> np.ndarray:
        """float32[n, feature_dim]: the scores in random orthonormal directions, with noise in all dimensions."""
        directions = np.linalg.qr(rng.normal(size=(self.feature_dim, len(TRAITS))))[0]
        noise = rng.normal(0, self.noise / np.sqrt(2), (len(scores), self.feature_dim))
        return (scores @ directions.T + noise).astype(np.float32)

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        return in_order(data, self.n_users, self.queries)

    def readings(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        """How well a learned linear prior's leading axes are the traits, over all items (claim P7).

        Axes are the first seven principal components of features @ root, what a user of that prior tells apart.
        `r2/TRAIT` is the share of a trait's variance that lies in their span, `r2` the mean over traits.
        `cosine/TRAIT/AXIS` is the absolute cosine of the two as centred vectors over items, `cosine` the mean of the
        best where each trait has an axis of its own. Traits are wanted equally often, so choices identify the span
        alone: seven axes turned at random within it have a cosine of .66. `elbow`: how many axes stand before the
        largest ratio of two successive singular values among the first fourteen, where the prior has more axes than
        traits.
        """
        root, features = state.get("root"), splits.train.items.features
        if root is None or root.ndim != 2 or len(root) != features.shape[1] or not root.any():
            return {}
        rewards = torch.from_numpy(features).double() @ root.double()
        axes, spectrum, _ = torch.linalg.svd(rewards - rewards.mean(0), full_matrices=False)
        axes, spectrum = axes[:, : len(TRAITS)], spectrum[spectrum > 1e-6 * spectrum[0]][: 2 * len(TRAITS)]
        true = torch.from_numpy(truth.items).double()
        true = torch.nn.functional.normalize(true - true.mean(0), dim=0)
        cosine = (true.T @ axes).abs().numpy()
        named = {f"cosine/{t}/{j + 1}": c for t, row in zip(TRAITS, cosine, strict=True) for j, c in enumerate(row)}
        named |= {f"r2/{t}": r2 for t, r2 in zip(TRAITS, (cosine**2).sum(1), strict=True)}
        if len(spectrum) > len(TRAITS):
            named["elbow"] = int((spectrum[:-1] / spectrum[1:]).argmax()) + 1
        return named | {"r2": (cosine**2).sum(1).mean(), "cosine": cosine[linear_sum_assignment(-cosine)].mean()}


def drawn(rng: np.random.Generator, allowed: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of `counts[i]` random allowed columns of each row i (all, where there are fewer), in random order.

    allowed: bool[n, m]; counts: int[n].
    """
    order = np.where(allowed, rng.random(allowed.shape), 2)
    column, value = order.argsort(1), np.sort(order, 1)
    row, place = np.nonzero((np.arange(allowed.shape[1]) < counts[:, None]) & (value < 2))
    return row, column[row, place]
