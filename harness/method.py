"""Method, which predicts preferences, and Run, the inputs that a trial passes to a method."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from harness import fields
from harness.data import Items, Pairs, Panel, Truth
from harness.search_space import SearchSpace

if TYPE_CHECKING:
    from harness.learning.search import Search
    from harness.store.store import Store

State = dict[str, torch.Tensor]  # what a method learned from training users
# What a method learned about each user; the first dimension of every tensor is n_users.
Users = tuple[torch.Tensor, ...]


GENERATED_SCHEMA = pa.schema(  # columns that `generate` returns; kl and reference are in nats
    [
        ("response", pa.large_string()),
        ("n_tokens", pa.int32()),
        ("stopped", pa.bool_()),  # the response ended by itself, not at the token limit
        ("kl", pa.float32()),  # divergence of the policy from the reference model, summed over the response's tokens
        ("reference", pa.float32()),  # mean log-probability of a token under the reference model
    ]
)


@dataclass(frozen=True)
class Questions:
    """Questions with two possible answers for one language model.

    systems[i] is the system prompt of prompts[i], or None.
    """

    model: str  # name of the language model, as in a method's field `model`
    words: tuple[str, str]  # the two possible answers
    systems: Sequence[str | None]
    prompts: Sequence[str]


@dataclass(frozen=True)
class Continuations:
    """Texts for one language model, which says how likely it is to write each of them next.

    The model reads beginnings[i], leads[i] and texts[i]; the log-probabilities of the tokens of texts[i] are added up. Rows
    with the same beginning should follow one another: it is then read once.
    """

    model: str  # name of the language model, as in a method's field `model`
    beginnings: Sequence[str]
    leads: Sequence[str]
    texts: Sequence[str]


@dataclass(frozen=True)
class ItemRewards:
    """Responses to prompts for a reward model, which gives each one number: the output of one of its heads."""

    model: str  # name of the reward model, as in a method's field `model`
    head: int
    prompts: Sequence[str]
    responses: Sequence[str]


Asked = Questions | Continuations | ItemRewards
# Log-odds float64[questions] of the first word against the second; or log-likelihoods float64[texts], or rewards.
Answerer = Callable[[Asked], np.ndarray]


@dataclass(frozen=True)
class TaskFacts:
    """Properties of a task that a method may read before a trial runs."""

    feature_dim: int | None
    has_text: bool
    has_seconds: bool  # response times are known
    has_truth: bool  # the ground truth is known, as for simulators
    has_ratings: bool = False  # the pairs are made of ratings, which are known
    has_profiles: bool = False  # people wrote texts about themselves
    shares_pairs: bool = False  # training users judged most of the test users' query pairs
    can_choose: bool = True  # test users have more context pairs than the largest number of shots


@dataclass(frozen=True, eq=False)
class Run:
    """Inputs of a method from its trial. Only privileged methods are given the ground truth."""

    seed: int
    device: str = "cpu"
    truth: Truth | None = None
    checkpoint: Path | None = None  # folder where a long `fit` saves what it needs to resume after a kill
    store: Store | None = None  # the store of language models and of their outputs for the task's responses
    shots: tuple[int, ...] = ()  # the numbers of context pairs at which the trial scores people
    identity: Mapping[str, object] = field(default_factory=dict)  # of the trial; {} outside a trial
    curves: dict[str, list[float]] = field(default_factory=dict)
    # what `fit` chose on validation users, as plain values, to be stored with the trial
    chosen: dict[str, object] = field(default_factory=dict)

    def generator(self, purpose: str = "") -> torch.Generator:
        """Return a random number generator that depends on the seed and the purpose alone."""
        # A 32-bit seed, as the CPU generator uses only 32 bits.
        return torch.Generator(self.device).manual_seed(zlib.crc32(f"{self.seed}/{purpose}".encode()))

    def log(self, **values: float) -> None:
        """Append a point to each named learning curve; curves are stored with the trial."""
        for name, value in values.items():
            self.curves.setdefault(name, []).append(float(value))


class Predictor:
    """A predictor of users' preferences: a method, or what `Method.open_predictor` returns in its place."""

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        """Learn about all users of a panel at once from their context pairs.

        A user without pairs is one about whom nothing is known.
        """
        raise NotImplementedError

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        """Return float[n]: the reward of row item[i] of `items` for the user in row user[i] of `users`.

        Only for methods whose `has_rewards` is true.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: define `reward`; or define `score` and set has_rewards to False"
        )

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        """Return float[n]: log-odds that left is preferred (Bradley-Terry: the difference of rewards).

        Labels in `query` are hidden.
        """
        sides = (self.reward(state, users, query.items, query.user, side) for side in (query.left, query.right))
        left, right = (reward if reward.is_floating_point() else reward.double() for reward in sides)
        return left - right  # of whole numbers without sign, the difference would wrap around

    def questions(self, state: State, users: Users, query: Pairs) -> Asked:
        """Return what a language model is asked about the pairs of `query`, where `asks_model = True`."""
        raise NotImplementedError

    def score_answers(self, log_odds: np.ndarray, query: Pairs) -> torch.Tensor:
        """Return float[n]: log-odds that left is preferred, from a language model's answers to `questions`.

        log_odds: float64[questions], of the first word against the second; or log-likelihoods of the texts. NaN where a
        question could not be answered.
        """
        raise NotImplementedError

    def answer_facts(self, log_odds: np.ndarray, query: Pairs) -> dict[str, float]:
        """Return what a reader should know of a language model's answers, see `score_answers`; {} where there is nothing.

        orders_agree: share of pairs for which both orders of the responses give the same answer.  first_named: share of
        questions answered with the response that is named first.
        """
        return {}

    def uncertainty(self, state: State, users: Users, pool: Pairs) -> torch.Tensor:
        """Return float[n]: how informative an answer to each pair of `pool` would be.

        With `elicitation = "uncertainty"` the pair with the largest value is asked. A method that supports this
        declares the field `elicitation: Literal["random", "uncertainty"] = "random"`.
        """
        raise NotImplementedError

    def generate(
        self, state: State, users: Users | None, user: np.ndarray, prompts: Sequence[str], run: Run
    ) -> pa.Table:
        """Write a response to prompts[i] for the user in row user[i] of `users`, where `generates = True`.

        users: None means that the reference model, from which training started, writes instead, with the same random
        draws as the policy.
        Returns the columns of GENERATED_SCHEMA.
        """
        raise NotImplementedError

    def export(self, state: State, folder: Path) -> str:
        """Write the trained language model into an empty folder, where `exports = True`; return how to load it."""
        raise NotImplementedError


def equal_users(users: Users, others: Users) -> bool:
    """Return whether all tensors are equal, so that everything computed from them is equal too."""
    return len(users) == len(others) and all(map(torch.equal, users, others))


@dataclass(frozen=True)
class Method(Predictor):
    """A way to predict preferences. Each file in `harness/methods/` defines one subclass and has the method's name.

    Fields are hyper-parameters, and all are part of a trial's identity. A method object stores nothing that it learned:
    `fit` and `adapt` return that. A subclass that defines `__post_init__` calls this class's one first.
    """

    version: ClassVar[int] = 1
    # For `manyminds list --family`: control, linear, network, language model, or line (privileged methods).
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""  # authors, year and short title of where it comes from
    privileged: ClassVar[bool] = False  # knows the ground truth: drawn as a line, never ranked
    asks_model: ClassVar[bool] = False  # asks a language model; its questions are collected before trials run
    trains_model: ClassVar[bool] = False  # trains a language model; several workers may share one trial
    generates: ClassVar[bool] = False  # writes texts: defines `generate`
    exports: ClassVar[bool] = False  # exports the language model that it trained: defines `export`
    combines: ClassVar[bool] = False  # reads what other methods learned in their trials: its own trials come last
    searches: ClassVar[bool] = False  # tries settings of another method: defines `open_search`
    # Fields that `tuned` may search, and between which values: as wide as makes sense, whatever the default.
    search_space: ClassVar[SearchSpace] = {}

    def __post_init__(self) -> None:
        fields.validate_fields(self)

    @property
    def name(self) -> str:
        """Name of the method: its file's stem."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def estimated_seconds(self) -> float:
        """Estimated seconds of one core for a trial; used until a trial has finished and its time is known."""
        return 2.0  # median over the slower methods of the quick suite

    def refuses(self, task: TaskFacts) -> str | None:
        """Return why the method cannot run on a task, or None."""
        if self.privileged and not task.has_truth:
            return "needs the ground truth, which only simulators have"
        if self.elicitation == "uncertainty" and not task.can_choose:
            return "cannot choose context pairs: users have no more of them than the largest number of shots"
        return None

    @property
    def variant_of(self) -> Method | None:
        """The method that this one is a variant of, and beside whose name it stands on boards; None for most."""
        return None

    @property
    def elicitation(self) -> str:
        """How context pairs are chosen, `random` or `uncertainty`; a field of methods that define `uncertainty`."""
        return "random"

    @property
    def has_rewards(self) -> bool:
        """Whether single items are scored, by `reward` or by a language model's answers; where false, only pairs are."""
        return True

    def open_search(self, run: Run) -> Search:
        """Return a new search for the setting, where `searches = True`."""
        raise NotImplementedError

    def prepare_models(self, store: Store) -> None:
        """Make what all trials of the method share; called before any trial runs.

        Raises UnavailableError where something is missing.
        """

    def open_predictor(self, state: State, run: Run) -> AbstractContextManager[Predictor]:
        """Open the predictor that answers in the method's place.

        A policy keeps its language model loaded inside this context, and frees it afterwards.
        """
        return nullcontext(self)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        """Learn from the training users. `validation`, other users with their labels, is for choosing settings."""
        raise NotImplementedError


def needs_of_method(method: Method) -> list[str]:
    """Return which properties of a task a method cannot do without, and whether it needs a language model."""
    everything = TaskFacts(8, has_text=True, has_seconds=True, has_truth=True, has_profiles=True, shares_pairs=True)
    without: dict[str, dict[str, Any]] = {
        "features": {"feature_dim": None},
        "texts": {"has_text": False},
        "response times": {"has_seconds": False},
        "ground truth": {"has_truth": False},
        "profiles": {"has_profiles": False},
        "shared pairs": {"shares_pairs": False},
    }
    if method.refuses(everything):
        return []
    needs = [need for need, lacking in without.items() if method.refuses(replace(everything, **lacking))]
    return needs + (["language model"] if method.asks_model or method.trains_model else [])
