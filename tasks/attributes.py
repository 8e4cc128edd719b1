"""Users who each want two of seven text traits or their opposites, in a simulated text world (PReF, appendix B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import torch
from scipy.optimize import linear_sum_assignment

from harness.data import TEXT_SCHEMA, Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError, did_you_mean
from harness.inference import answer as answer_module
from harness.inference import generate, role_play
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.method import State, Users
from harness.sources.text_world import PROMPTS, TRAITS, trait_scores, write_response
from harness.store.store import Store
from harness.task import TextTask, split_in_order

SIGNED_TRAIT_PAIRS = [(i, j, sign) for i, j in combinations(range(len(TRAITS)), 2) for sign in (1, -1)]
HALF_OF_POSSIBLE_USERS = np.array(
    [np.eye(len(TRAITS))[i] + sign * np.eye(len(TRAITS))[j] for i, j, sign in SIGNED_TRAIT_PAIRS], dtype=np.float32
)
# float32[84, 7]: every signed choice of two traits; user i + 42 is the opposite of user i
POSSIBLE_USERS = np.concatenate([HALF_OF_POSSIBLE_USERS, -HALF_OF_POSSIBLE_USERS])


def canonical_raters(raters: str) -> str:
    """Return the canonical form of the value of `raters`; the task's identity holds this form."""
    return raters if raters == "truth" else answer_module.canonical_judge(raters)


def canonical_writer(generator: str) -> str:
    """Return the canonical form of the value of `generator` or `responses`; the task's identity holds this form.

    The form is the same for a model wherever its files are.
    """
    if ":" not in generator and generator != "templates":
        raise UserError(
            f"{generator!r} is not the name of a writer",
            did_you_mean(generator, ["templates"], "templates, or a language model such as transformers:smollm"),
        )
    return generator if generator == "templates" else generate.parse_generator(generator).canonical_name


@dataclass(frozen=True)
class Attributes(TextTask):
    """A task in which utility is the sum of a user's two signed trait scores, computed from the response's text.

    harness/sources/text_world.py computes the scores. The two responses of a pair answer one prompt, each steered to
    its own trait levels. The paper's users are played by GPT-4o, asked in both orders and averaged. Here a label is the
    mean of two independent draws from Bernoulli(sigmoid(utility gap / temperature)), one for each order. So it is 0,
    1/2 or 1. All users draw from the same `pairs` pairs: each judges a random part of those that are not ties for them.
    Query pairs have other prompts, which no context or training pair has. Opposite users are never divided between
    training users and others. Otherwise the opposites of many test users would be training users, and one reward for
    all would fall below chance. (If `new_users` is odd, one pair of opposites is a validation user and a test user.)
    Features are the `encoder`'s vectors of the responses. With "numbers" they are the seven trait scores, rotated at
    random into `feature_dim` dimensions, with noise.

    kinds = 2: there are only two kinds of user, in alternation: one signed choice of traits drawn by the seed, and its
    opposite. They disagree about every pair that is not a tie.
    context_pairs: the context of new users has other pairs than those training users judged, so a method cannot know
    them from training.
    n_candidates: the number of responses to each of `choice_prompts` further prompts, to choose the best of.

    Two language models, as in the paper, can replace the simulation (harness/inference/role_play.py). `responses` names
    the model that writes the judged responses, each under a system prompt with two signed traits drawn at random.
    `raters` names the model that plays the users; it is asked in both orders, and the mean of the two answers is the
    label. Users played by a model have no ground truth, so there are no candidates to choose from either.
    """

    family = "simulated"
    paper = "Shenfeld et al. 2025, PReF"

    n_users: int = 54  # training users; together with the new users all 84
    new_users: int = 15  # validation users, and as many test users
    kinds: int = 0  # 0: every user makes another choice of traits; 2: two opposed kinds with any number of users
    pairs_per_user: int = 200  # of `pairs`, judged by each training user; fewer where ties leave fewer
    pairs: int = 400  # distinct pairs to judge
    context_pairs: int = 0  # further distinct pairs, judged by new users only; 0: new users judge `pairs`
    pool: int = 200  # of `pairs` or `context_pairs`, judged by each new user: the pool that elicitation chooses from
    encoder: str = encoder_field()  # or "numbers"
    feature_dim: int = 64  # "numbers" only
    noise: float = 0.2  # "numbers" only: sd of the noise in each dimension of the difference of two items' features
    temperature: float = 0.65  # the oracle's AUC is then .94
    n_candidates: int = 0  # for each of choice_prompts; 0: no candidates to choose from
    choice_prompts: int = 100
    # `generator` writes the candidates, `responses` the judged responses: templates, or a language model's name.
    generator: str = field(default="templates", metadata={"identity": canonical_writer})
    responses: str = field(default="templates", metadata={"identity": canonical_writer})
    # "truth" simulates the users; a language model's name lets that model play them.
    raters: str = field(default="truth", metadata={"identity": canonical_raters})

    queries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder != "numbers":
            check_encoder(self.encoder)
        for name in (self.generator, self.responses):
            canonical_writer(name)  # raises UserError for an unknown name, as canonical_raters does
        canonical_raters(self.raters)
        if self.raters != "truth" and self.n_candidates:
            raise UserError(
                "attributes: candidates have no ground-truth utility for users played by a language model",
                'n_candidates = 0, or raters = "truth"',
            )
        if min(self.n_users, self.new_users, self.pairs_per_user, self.pairs, self.pool) < 1 or self.temperature <= 0:
            raise UserError(
                "attributes: counts must be at least 1, and temperature above 0", "leave them out for the defaults"
            )
        if self.kinds not in (0, 2):
            raise UserError(
                f"attributes: kinds = {self.kinds} must be 0 or 2", "kinds = 2, or 0 for all signed choices"
            )
        if not self.kinds and self.n_users + 2 * self.new_users > len(POSSIBLE_USERS):
            raise UserError(
                f"attributes: n_users + 2 new_users = {self.n_users} + 2 x {self.new_users} exceeds the "
                f"{len(POSSIBLE_USERS)} possible users",
                "lower n_users or new_users, or set kinds = 2, which allows any number of users",
            )
        if self.n_candidates < 0 or self.n_candidates == 1 or self.choice_prompts < 1:
            raise UserError(
                f"attributes: n_candidates = {self.n_candidates} must be 0 or at least 2, and choice_prompts = "
                f"{self.choice_prompts} at least 1",
                "for example n_candidates = 16, choice_prompts = 100",
            )
        if self.context_pairs < 0:
            raise UserError(
                f"attributes: context_pairs = {self.context_pairs} is below 0",
                "context_pairs = 0 shows new users the same pairs as training users",
            )
        chosen = self.choice_prompts if self.n_candidates else 0
        if self.pairs + self.context_pairs + self.n_query_pairs + chosen > len(PROMPTS):
            prompts = {"pairs": self.pairs, "context_pairs": self.context_pairs, "choice_prompts": chosen}
            used = {name: count for name, count in prompts.items() if count}
            raise UserError(
                f"attributes: {', '.join(f'{name} = {count}' for name, count in used.items())} and queries = "
                f"{self.queries} ({self.n_query_pairs} query pairs) need more than the {len(PROMPTS)} prompts that "
                "there are",
                f"lower {', '.join(used)} or queries",
            )
        for judged, of in (("pairs_per_user", "pairs"), ("pool", "context_pairs" if self.context_pairs else "pairs")):
            if getattr(self, judged) > getattr(self, of):
                raise UserError(
                    f"attributes: {judged} = {getattr(self, judged)} is more than {of} = {getattr(self, of)}",
                    f"lower {judged}, or raise {of}",
                )
        if self.pool < max(self.shots):
            raise UserError(
                f"attributes: pool = {self.pool} is below the largest number of shots, {max(self.shots)}",
                f"pool = {max(self.shots)} or more, or fewer shots",
            )
        if self.feature_dim < len(TRAITS) or self.noise < 0:
            raise UserError(
                f"attributes: feature_dim must be {len(TRAITS)} or more, and noise 0 or more",
                "for example feature_dim = 64, noise = 0.2",
            )

    @property
    def n_query_pairs(self) -> int:
        """Number of distinct query pairs: so many that a user has `queries` without ties (about one in nine is a tie)."""
        return 2 * self.queries + 20

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        half = rng.permutation(len(HALF_OF_POSSIBLE_USERS))
        opposites = np.column_stack([half, half + len(HALF_OF_POSSIBLE_USERS)])
        if self.kinds:
            population = POSSIBLE_USERS[opposites[0]]
            people = population[np.concatenate([np.arange(n) % 2 for n in (self.n_users, *[self.new_users] * 2)])]
        else:
            new, train = np.split(opposites.ravel(), [2 * self.new_users])
            population, people = POSSIBLE_USERS, POSSIBLE_USERS[np.concatenate([train[: self.n_users], new])]

        to_judge = self.pairs + self.context_pairs  # distinct pairs to judge; the pairs after them are queries
        n = to_judge + self.n_query_pairs
        order = rng.permutation(len(PROMPTS))
        prompts = np.repeat(order[:n], 2)
        seeds = rng.integers(2**31, size=2 * n)
        text = self.write_texts([PROMPTS[p] for p in prompts], seeds, store)
        item_prompts, choices = [PROMPTS[p] for p in prompts], None
        if self.n_candidates:
            more = self.write_candidates([PROMPTS[p] for p in order[n : n + self.choice_prompts]], seed, store)
            item_prompts += [prompt for prompt, answers in more for _ in answers]
            text += [answer for _, answers in more for answer in answers]
            choices = np.arange(2 * n, len(text), dtype=np.int32).reshape(len(more), self.n_candidates)
        table = pa.table([item_prompts, text], schema=TEXT_SCHEMA)
        scores = trait_scores(text)

        gap = people @ (scores[0 : 2 * n : 2] - scores[1 : 2 * n : 2]).T  # [people, pairs]
        tie = np.abs(gap) < 1e-4  # up to rounding: scores count words and phrases
        if self.raters != "truth":
            tie = np.zeros_like(tie)  # a user played by a model may still prefer one of the two
        tie |= np.array([a == b for a, b in zip(text[0 : 2 * n : 2], text[1 : 2 * n : 2], strict=True)])
        n_judged = np.repeat([self.pairs_per_user, self.pool], [self.n_users, 2 * self.new_users])
        may_judge = ~tie[:, :to_judge]
        if self.context_pairs:
            may_judge &= (np.arange(len(people)) >= self.n_users)[:, None] == (np.arange(to_judge) >= self.pairs)
        judged = draw_columns(rng, may_judge, n_judged)
        query = draw_columns(rng, ~tie[:, to_judge:], np.full(len(people), self.queries))
        user = np.concatenate([judged[0], query[0]])
        pair = np.concatenate([judged[1], query[1] + to_judge])
        label = (rng.random((2, len(user))) < 1 / (1 + np.exp(-gap[user, pair] / self.temperature))).mean(0)
        if self.raters != "truth":
            left, right = 2 * pair, 2 * pair + 1
            prompt = [item_prompts[i] for i in left]
            one, other = [text[i] for i in left], [text[i] for i in right]
            label = role_play.role_played_labels(self.raters, people[user], prompt, one, other, store)

        features = (
            self.rotated_features(rng, scores)
            if self.encoder == "numbers"
            else encode_items(table, self.encoder, store)
        )
        truth = Truth(people, scores, self.temperature, population) if self.raters == "truth" else None
        data = PreferenceDataset.from_pairs(
            user, 2 * pair, 2 * pair + 1, label, Items(features, table, columns_share_unit=True), truth=truth
        )
        return replace(data, choices=choices)

    @property
    def has_text_attributes(self) -> bool:
        return True

    def text_attributes(self, texts: Sequence[str]) -> np.ndarray:
        return trait_scores(texts)

    def write_texts(self, prompts: list[str], seeds: np.ndarray, store: Store | None) -> list[str]:
        """Return a response to each prompt, by templates, or by the model under two signed traits drawn by the seed."""
        if self.responses == "templates":
            return [write_response(p, int(s)) for p, s in zip(prompts, seeds, strict=True)]
        system_prompts = [
            role_play.writer_system_prompt(
                role_play.wanted_traits(POSSIBLE_USERS[s % len(POSSIBLE_USERS)]), self.responses
            )
            for s in seeds
        ]
        found = generate.stored_candidates(system_prompts, prompts, self.responses, 1, store)
        if missing := sum(not answers for answers in found):
            raise UserError(
                f"attributes: {self.responses} wrote no response to {missing} of {len(prompts)} prompts",
                "look for errors in the output of `manyminds generate`; try another model, or another seed, for example "
                'responses = "transformers:small?seed=1"',
            )
        return [answers[0] for answers in found]

    def write_candidates(self, prompts: list[str], seed: int, store: Store | None) -> list[tuple[str, list[str]]]:
        """Return each prompt with its `n_candidates` responses; prompts with fewer responses are left out."""
        if self.generator == "templates":
            seeds = np.random.default_rng([seed, self.n_candidates]).integers(
                2**31, size=(len(prompts), self.n_candidates)
            )
            return [(p, [write_response(p, int(s)) for s in row]) for p, row in zip(prompts, seeds, strict=True)]
        found = generate.stored_candidates([None] * len(prompts), prompts, self.generator, self.n_candidates, store)
        whole = [(p, answers) for p, answers in zip(prompts, found, strict=True) if len(answers) == self.n_candidates]
        if not whole:
            raise UserError(
                f"attributes: {self.generator} gave {self.n_candidates} responses to none of the {len(prompts)} prompts",
                "look for errors in the output of `manyminds generate`; try another generator, or fewer n_candidates",
            )
        return whole

    def rotated_features(self, rng: np.random.Generator, scores: np.ndarray) -> np.ndarray:
        """Return float32[n, feature_dim]: scores along random orthonormal directions, with noise in all dimensions."""
        directions = np.linalg.qr(rng.normal(size=(self.feature_dim, len(TRAITS))))[0]
        noise = rng.normal(0, self.noise / np.sqrt(2), (len(scores), self.feature_dim))
        return (scores @ directions.T + noise).astype(np.float32)

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        splits = split_in_order(data, self.n_users, self.queries)
        return replace(splits, panels={**splits.panels, "test": replace(splits.panels["test"], choices=data.choices)})

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        """Return how well a learned linear prior's leading axes match the traits, over all items (claim P7).

        The state of a linear method holds `root`: users' weights have the covariance root @ root.T. Axes are the first
        seven principal components of features @ root, the directions in which users of that prior differ.
        r2/TRAIT: the share of a trait's variance that lies in the axes' span.  r2: the mean over traits.
        cosine/TRAIT/AXIS: absolute cosine of trait and axis as centred vectors over items.
        cosine: the mean over the best one-to-one assignment of axes to traits. Traits are wanted equally often, so
        choices identify only the span: seven axes rotated at random within it have a cosine of .66.
        elbow: the k at which singular value k divided by singular value k + 1 is largest, among the first fourteen;
        only if more than seven are not negligible.
        orders_agree: for users played by a language model, the share of training pairs in which the same response won
        in both orders; the board shows it.
        """
        if truth is None:
            return {"orders_agree": np.mean(splits.train.label != 0.5)}
        root, features = state.get("root"), splits.train.items.known_features
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


def draw_columns(rng: np.random.Generator, allowed: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw `counts[i]` random allowed columns of each row i (all where there are fewer); return rows and columns.

    allowed: bool[n, m]; counts: int[n].
    """
    order = np.where(allowed, rng.random(allowed.shape), 2)
    column, value = order.argsort(1), np.sort(order, 1)
    row, place = np.nonzero((np.arange(allowed.shape[1]) < counts[:, None]) & (value < 2))
    return row, column[row, place]
