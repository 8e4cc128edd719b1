"""Users who each want two of seven traits, or their opposites, in a text world of our own (PReF, appendix B.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import torch
from scipy.optimize import linear_sum_assignment

from harness.data import TEXT_SCHEMA, Items, PreferenceDataset, Splits, Truth
from harness.errors import UserError
from harness.inference import answer as answer_module
from harness.inference import generate, role_play
from harness.inference.features import check_encoder, encode_items, encoder_field
from harness.method import State, Users
from harness.sources.text_world import PROMPTS, TRAITS, trait_scores, write_response
from harness.store.store import Store
from harness.task import TextTask, split_in_order

SIGNED_TRAIT_PAIRS = [(i, j, sign) for i, j in combinations(range(len(TRAITS)), 2) for sign in (1, -1)]
WANTED_TRAITS = np.array(
    [np.eye(len(TRAITS))[i] + sign * np.eye(len(TRAITS))[j] for i, j, sign in SIGNED_TRAIT_PAIRS], dtype=np.float32
)
POSSIBLE_USERS = np.concatenate(
    [WANTED_TRAITS, -WANTED_TRAITS]
)  # float32[84, 7]: every signed choice of two traits; i + 42 opposes i


def canonical_raters(raters: str) -> str:
    """The same of the field `raters`."""
    return raters if raters == "truth" else answer_module.canonical_judge(raters)


def canonical_writer(generator: str) -> str:
    """What counts of the field `generator`: a language model's content, wherever it lies."""
    return generator if generator == "templates" else generate.parse_generator(generator).canonical_name


@dataclass(frozen=True)
class Attributes(TextTask):
    """Utility is the sum of a user's two signed trait scores, which are computed from the text (harness/sources/text_world.py).

    The two responses of a pair answer one prompt, each steered to levels of its own. The paper lets GPT-4o play the
    user, once in each order of the two, and averages: here a label is the mean of two independent answers, one per
    order, Bernoulli(sigmoid(utility gap / temperature)), so it is 0, 1/2 or 1. Users judge the same `pairs`, each a
    random part of them without those he is exactly indifferent to; queries are pairs of prompts nobody was shown.
    Opposite users are kept together: else what most training users want most test users would not, and one reward for
    all would fall below chance. (Where `new_users` is odd one pair of opposites is a validation and a test user.)
    Features are `encoder`'s of the responses; with "numbers" the seven trait scores, rotated at random into
    `feature_dim` dimensions, with noise.

    With `kinds = 2` there are two kinds of user alone, by turns: one of the choices, drawn by the seed, and its opposite.
    They disagree about every pair that is no tie. With `context_pairs`, new users show choices between pairs that no
    training user judged, so a method cannot know them from training.

    With `n_candidates`, as many responses to each of `choice_prompts` further prompts are there to choose the best of.

    The paper's own source is two language models: `responses` names who writes the responses that are judged, each
    under a system prompt with two signed traits drawn at random, and `raters` who plays the users (harness/inference/role_play.py):
    asked in both orders, the mean of the two answers is the label. Nobody knows the utility of a played user, so there
    is no truth then, and nothing to choose from.
    """

    n_users: int = 54  # training users; with those below all 84
    new_users: int = 15  # validation users, and as many test users
    kinds: int = 0  # 0: every user wants another choice; 2: two opposed kinds, each of as many users as asked for
    pairs_per_user: int = 200  # judged by each training user, of `pairs`; ties may leave fewer of nearly all
    pairs: int = 400  # distinct pairs to judge
    context_pairs: int = 0  # further distinct pairs, judged by new users alone; 0: they judge `pairs`
    pool: int = 200  # judged by each new user, of `pairs` or `context_pairs`: what elicitation chooses from
    encoder: str = encoder_field()  # or "numbers"
    feature_dim: int = 64  # of "numbers" alone
    noise: float = 0.2  # of "numbers" alone: its sd in every dimension of the difference of two items
    temperature: float = 0.65  # the oracle's AUC is then .94
    n_candidates: int = 0  # for each of choice_prompts; 0: nothing to choose from
    choice_prompts: int = 100
    generator: str = field(
        default="templates", metadata={"identity": canonical_writer}
    )  # of candidates; or a model's name
    responses: str = field(default="templates", metadata={"identity": canonical_writer})  # or a language model's name
    raters: str = field(
        default="truth", metadata={"identity": canonical_raters}
    )  # or the name of one that plays the users

    queries: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder != "numbers":
            check_encoder(self.encoder)
        (
            canonical_writer(self.generator),
            canonical_writer(self.responses),
            canonical_raters(self.raters),
        )  # raise where they name nobody
        if self.raters != "truth" and self.n_candidates:
            raise UserError(
                "attributes: nobody knows what candidates are worth to users that a language model plays",
                'n_candidates = 0, or raters = "truth"',
            )
        if min(self.n_users, self.new_users, self.pairs_per_user, self.pairs, self.pool) < 1 or self.temperature <= 0:
            raise UserError(
                "attributes: counts must be at least 1, and temperature above 0", "leave it out for the default"
            )
        if self.kinds not in (0, 2):
            raise UserError(
                f"attributes: there are no {self.kinds} kinds of user", "kinds = 2, or 0 for all signed choices"
            )
        if not self.kinds and self.n_users + 2 * self.new_users > len(POSSIBLE_USERS):
            raise UserError(
                f"attributes: {self.n_users} + 2 x {self.new_users} users; there are {len(POSSIBLE_USERS)} in all",
                "lower n_users or new_users; or kinds = 2, of which there are as many as you like",
            )
        if self.n_candidates < 0 or self.n_candidates == 1 or self.choice_prompts < 1:
            raise UserError(
                f"attributes: n_candidates = {self.n_candidates} to {self.choice_prompts} prompts leave nothing to choose",
                "for example n_candidates = 16, choice_prompts = 100",
            )
        if self.context_pairs < 0:
            raise UserError(f"attributes: context_pairs = {self.context_pairs}", "context_pairs = 0 takes none")
        chosen = self.choice_prompts if self.n_candidates else 0
        if self.pairs + self.context_pairs + self.pairs_per_new_user + chosen > len(PROMPTS):
            more = f"{self.context_pairs} to show, " if self.context_pairs else ""
            also = f" and {chosen} to answer" if chosen else ""
            lower = ["pairs"] + ["context_pairs"] * bool(more) + ["choice_prompts"] * bool(also)
            raise UserError(
                f"attributes: {self.pairs} pairs to judge, {more}{self.pairs_per_new_user} to ask{also}; "
                f"there are {len(PROMPTS)} prompts",
                f"lower {', '.join(lower)} or queries",
            )
        for judged, of in (("pairs_per_user", "pairs"), ("pool", "context_pairs" if self.context_pairs else "pairs")):
            if getattr(self, judged) > getattr(self, of):
                raise UserError(
                    f"attributes: someone judges {getattr(self, judged)} of {getattr(self, of)} pairs",
                    f"lower {judged}, or raise {of}",
                )
        if self.pool < max(self.shots):
            raise UserError(
                f"attributes: pool = {self.pool}, of which new users cannot show {max(self.shots)}",
                f"pool = {max(self.shots)} or more, or fewer shots",
            )
        if self.feature_dim < len(TRAITS) or self.noise < 0:
            raise UserError(
                f"attributes: feature_dim is below {len(TRAITS)}, or noise below 0", "feature_dim = 64 is P1's"
            )

    @property
    def pairs_per_new_user(self) -> int:
        """Distinct pairs of the queries: enough that ties, about one in nine, never leave a user with too few."""
        return 2 * self.queries + 20

    def build(self, seed: int, store: Store | None = None) -> PreferenceDataset:
        rng = np.random.default_rng(seed)
        half = rng.permutation(len(WANTED_TRAITS))
        opposites = np.column_stack([half, half + len(WANTED_TRAITS)])
        if self.kinds:
            population = POSSIBLE_USERS[opposites[0]]
            people = population[np.concatenate([np.arange(n) % 2 for n in (self.n_users, *[self.new_users] * 2)])]
        else:
            new, train = np.split(opposites.ravel(), [2 * self.new_users])
            population, people = POSSIBLE_USERS, POSSIBLE_USERS[np.concatenate([train[: self.n_users], new])]

        to_judge = self.pairs + self.context_pairs  # distinct pairs; the further ones are asked
        n = to_judge + self.pairs_per_new_user
        order = rng.permutation(len(PROMPTS))
        prompts = np.repeat(order[:n], 2)
        seeds = rng.integers(2**31, size=2 * n)
        text = self.write_texts([PROMPTS[p] for p in prompts], seeds, store)
        asked, choices = [PROMPTS[p] for p in prompts], None
        if self.n_candidates:
            more = self.write_candidates([PROMPTS[p] for p in order[n : n + self.choice_prompts]], seed, store)
            asked += [prompt for prompt, answers in more for _ in answers]
            text += [answer for _, answers in more for answer in answers]
            choices = np.arange(2 * n, len(text), dtype=np.int32).reshape(len(more), self.n_candidates)
        table = pa.table([asked, text], schema=TEXT_SCHEMA)
        scores = trait_scores(text)

        gap = people @ (scores[0 : 2 * n : 2] - scores[1 : 2 * n : 2]).T  # [people, pairs]
        tie = np.abs(gap) < 1e-4  # but for rounding: gaps are of words and phrases counted
        if self.raters != "truth":
            tie = np.zeros_like(tie)  # which a played user may see otherwise
        tie |= np.array([a == b for a, b in zip(text[0 : 2 * n : 2], text[1 : 2 * n : 2], strict=True)])
        shown = np.repeat([self.pairs_per_user, self.pool], [self.n_users, 2 * self.new_users])
        may = ~tie[:, :to_judge]
        if self.context_pairs:
            may &= (np.arange(len(people)) >= self.n_users)[:, None] == (np.arange(to_judge) >= self.pairs)
        judged = draw_columns(rng, may, shown)
        query = draw_columns(rng, ~tie[:, to_judge:], np.full(len(people), self.queries))
        user = np.concatenate([judged[0], query[0]])
        pair = np.concatenate([judged[1], query[1] + to_judge])
        label = (rng.random((2, len(user))) < 1 / (1 + np.exp(-gap[user, pair] / self.temperature))).mean(0)
        if self.raters != "truth":
            left, right = 2 * pair, 2 * pair + 1
            said = ([column[i] for i in rows] for column, rows in ((asked, left), (text, left), (text, right)))
            prompt, one, other = said
            label = role_play.role_played_labels(self.raters, people[user], prompt, one, other, store)

        features = (
            self.rotated_features(rng, scores)
            if self.encoder == "numbers"
            else encode_items(table, self.encoder, store)
        )
        truth = Truth(people, scores, self.temperature, population) if self.raters == "truth" else None
        data = PreferenceDataset.from_pairs(user, 2 * pair, 2 * pair + 1, label, Items(features, table), truth=truth)
        return replace(data, choices=choices)

    @property
    def reads_texts(self) -> bool:
        return True

    def utility(self, texts: Sequence[str]) -> np.ndarray:
        return trait_scores(texts)

    def write_texts(self, prompts: list[str], seeds: np.ndarray, store: Store | None) -> list[str]:
        """A response to each prompt: the text world's, or the model's under two signed traits that the seed draws."""
        if self.responses == "templates":
            return [write_response(p, int(s)) for p, s in zip(prompts, seeds, strict=True)]
        steered = [
            role_play.writer_system_prompt(
                role_play.wanted_traits(POSSIBLE_USERS[s % len(POSSIBLE_USERS)]), self.responses
            )
            for s in seeds
        ]
        found = generate.stored_candidates(steered, prompts, self.responses, 1, store)
        if missing := sum(not answers for answers in found):
            raise UserError(
                f"attributes: {self.responses} wrote nothing to {missing} of {len(prompts)} prompts",
                "does `manyminds generate` list errors? another model, or another seed=",
            )
        return [answers[0] for answers in found]

    def write_candidates(self, prompts: list[str], seed: int, store: Store | None) -> list[tuple[str, list[str]]]:
        """Each prompt with `n_candidates` responses; one that the generator could not answer so often is left out."""
        if self.generator == "templates":
            seeds = np.random.default_rng([seed, self.n_candidates]).integers(
                2**31, size=(len(prompts), self.n_candidates)
            )
            return [(p, [write_response(p, int(s)) for s in row]) for p, row in zip(prompts, seeds, strict=True)]
        found = generate.stored_candidates([None] * len(prompts), prompts, self.generator, self.n_candidates, store)
        whole = [(p, answers) for p, answers in zip(prompts, found, strict=True) if len(answers) == self.n_candidates]
        if not whole:
            raise UserError(
                f"attributes: {self.generator} answered none of {len(prompts)} prompts {self.n_candidates} times",
                "does `manyminds generate` list errors? another generator, or fewer n_candidates",
            )
        return whole

    def rotated_features(self, rng: np.random.Generator, scores: np.ndarray) -> np.ndarray:
        """float32[n, feature_dim]: the scores in random orthonormal directions, with noise in all dimensions."""
        directions = np.linalg.qr(rng.normal(size=(self.feature_dim, len(TRAITS))))[0]
        noise = rng.normal(0, self.noise / np.sqrt(2), (len(scores), self.feature_dim))
        return (scores @ directions.T + noise).astype(np.float32)

    def split(self, data: PreferenceDataset, seed: int) -> Splits:
        splits = split_in_order(data, self.n_users, self.queries)
        return replace(splits, panels={**splits.panels, "test": replace(splits.panels["test"], choices=data.choices)})

    def diagnostics(self, splits: Splits, truth: Truth | None, state: State, users: Users) -> dict[str, float]:
        """How well a learned linear prior's leading axes are the traits, over all items (claim P7).

        Axes are the first seven principal components of features @ root, what a user of that prior tells apart.
        `r2/TRAIT` is the share of a trait's variance that lies in their span, `r2` the mean over traits.
        `cosine/TRAIT/AXIS` is the absolute cosine of the two as centred vectors over items, `cosine` the mean of the
        best where each trait has an axis of its own. Traits are wanted equally often, so choices identify the span
        alone: seven axes turned at random within it have a cosine of .66. `elbow`: how many axes stand before the
        largest ratio of two successive singular values among the first fourteen, where the prior has more axes than
        traits. Of users that a language model plays, `orders_agree`: the share of training pairs in which the same
        response won in both orders, which the board shows.
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
    """Row and column of `counts[i]` random allowed columns of each row i (all, where there are fewer), in random order.

    allowed: bool[n, m]; counts: int[n].
    """
    order = np.where(allowed, rng.random(allowed.shape), 2)
    column, value = order.argsort(1), np.sort(order, 1)
    row, place = np.nonzero((np.arange(allowed.shape[1]) < counts[:, None]) & (value < 2))
    return row, column[row, place]
