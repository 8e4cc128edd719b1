"""Method and Run: how preferences are answered."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import torch

from harness import fields
from harness.data import Items, Pairs, Panel, Truth

if TYPE_CHECKING:
    from harness.store.store import Store

State = dict[str, torch.Tensor]  # whatever a method learned from training users
Users = tuple[torch.Tensor, ...]  # what it learned about each user; every tensor's leading dimension is n_users


GENERATED_SCHEMA = pa.schema(  # what `generate` returns; kl and reference in nats
    [
        ("response", pa.large_string()),
        ("n_tokens", pa.int32()),
        ("stopped", pa.bool_()),  # ended by itself
        ("kl", pa.float32()),  # of the policy from the reference model, summed over the response's tokens
        ("reference", pa.float32()),  # mean log-probability of a token under the reference model
    ]
)


@dataclass(frozen=True)
class Questions:
    """Questions to one language model that have two possible answers; systems[i] is the system prompt of prompts[i], or None."""

    model: str  # as a method's field `model` names it
    words: tuple[str, str]  # the answers
    systems: Sequence[str | None]
    prompts: Sequence[str]


Answerer = Callable[[Questions], np.ndarray]  # log-odds float64[questions] of the first word against the second


@dataclass(frozen=True)
class TaskFacts:
    """What a method may know about a task before it runs."""

    feature_dim: int | None
    has_text: bool
    has_seconds: bool
    has_truth: bool
    has_profiles: bool = False  # people wrote about themselves
    shares_pairs: bool = False  # training users judged pairs that test users are asked
    can_choose: bool = True  # test users have more pairs to show than the largest number of shots


@dataclass(frozen=True, eq=False)
class Run:
    """What a trial hands to a method: its seed, its device, and the truth only where the method is privileged."""

    seed: int
    device: str = "cpu"
    truth: Truth | None = None
    checkpoint: Path | None = None  # a folder for what a long `fit` needs to go on after a kill; None: nowhere
    store: Store | None = None  # where language models, and what they say of a task's responses, are kept
    curves: dict[str, list[float]] = field(default_factory=dict)

    def generator(self, purpose: str = "") -> torch.Generator:
        """A generator that depends on the seed and the purpose alone."""
        return torch.Generator(self.device).manual_seed(zlib.crc32(f"{self.seed}/{purpose}".encode()))  # 32 bits count

    def log(self, **values: float) -> None:
        """Appends a point to each named learning curve; curves are stored beside the trial."""
        for name, value in values.items():
            self.curves.setdefault(name, []).append(float(value))


class Predictor:
    """What answers for users: a fitted method, or what `Method.opened` gives in its place."""

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        """Learns all users of a panel at once from their context pairs; without any, the answer for a new user."""
        raise NotImplementedError

    def reward(self, state: State, users: Users, items: Items, user: np.ndarray, item: np.ndarray) -> torch.Tensor:
        """float[n]: the reward of items' row item[i] for local user user[i], where `has_rewards` is true."""
        raise NotImplementedError(
            f"{type(self).__name__}: write `reward`; or `score`, and declare that has_rewards is False"
        )

    def score(self, state: State, users: Users, query: Pairs) -> torch.Tensor:
        """float[n]: log-odds that left is preferred (Bradley-Terry: the gap of rewards). Labels in `query` are hidden."""
        left = self.reward(state, users, query.items, query.user, query.left)
        return left - self.reward(state, users, query.items, query.user, query.right)

    def questions(self, state: State, users: Users, query: Pairs) -> Questions:
        """What a language model is asked about the pairs of `query`, for methods that declare `asks_model = True`."""
        raise NotImplementedError

    def score_answers(self, log_odds: np.ndarray, query: Pairs) -> torch.Tensor:
        """float[n]: log-odds that left is preferred, from the answers to `ask`: log-odds float64[questions] of the first
        word against the second, NaN where a question could not be answered."""
        raise NotImplementedError

    def uncertainty(self, state: State, users: Users, pool: Pairs) -> torch.Tensor:
        """float[n]: how much an answer to each pair of `pool` would tell; with `elicitation = "uncertainty"` the largest is asked.

        Such a method declares the field `elicitation: Literal["random", "uncertainty"] = "random"`.
        """
        raise NotImplementedError

    def generate(
        self, state: State, users: Users | None, user: np.ndarray, prompts: Sequence[str], run: Run
    ) -> pa.Table:
        """A response to prompts[i] for local user user[i], columns as in GENERATED_SCHEMA, where `generates = True`.

        users None: by the reference model that the method started from, with the same random draws.
        """
        raise NotImplementedError

    def export(self, state: State, folder: Path) -> str:
        """Writes the language model it trained into an empty folder, where `exports = True`; returns how to load it."""
        raise NotImplementedError


def equal_users(users: Users, others: Users) -> bool:
    """Whether all tensors are equal, so that whatever follows of them is."""
    return len(users) == len(others) and all(map(torch.equal, users, others))


@dataclass(frozen=True)
class Method(Predictor):
    """One file in `harness/methods/` holds one subclass; the file's name is the method's name.

    Fields are hyper-parameters, and all of them are part of a trial's identity. A method holds nothing learned:
    what it learns are the return values of `fit` and `adapt`. A `__post_init__` of one's own calls this one first.
    """

    version: ClassVar[int] = 1
    privileged: ClassVar[bool] = False  # reads the truth; drawn as a line, never ranked
    asks_model: ClassVar[bool] = (
        False  # a language model, by harness/inference/answer.py: its questions are collected before trials run
    )
    trains_model: ClassVar[bool] = (
        False  # trains a language model: workers run one trial together, by torch.distributed
    )
    generates: ClassVar[bool] = False  # texts: has `generate`
    exports: ClassVar[bool] = False  # a language model that it trained: has `export`

    def __post_init__(self) -> None:
        fields.validate_fields(self)

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def estimated_seconds(self) -> float:
        """Seconds of one core that a trial may take, until one is finished, which tells better."""
        return 2.0  # the median of the quick suite's slower methods

    def refuses(self, task: TaskFacts) -> str | None:
        """Why it cannot run on a task, or None."""
        if self.privileged and not task.has_truth:
            return "needs the truth, which only simulators know"
        if self.elicitation == "uncertainty" and not task.can_choose:
            return "has nothing to choose from: users have no more pairs to show than the largest number of shots"
        return None

    @property
    def elicitation(self) -> str:
        """Who chooses the context pairs to ask, `random` or `uncertainty`: a field of methods that have `uncertainty`."""
        return "random"

    @property
    def has_rewards(self) -> bool:
        """Whether `reward` scores single items; a method without scores pairs alone."""
        return True

    def prepare_models(self, store: Store) -> None:
        """Makes what all its trials need, once, before any runs. Raises UnavailableError where something is not at hand."""

    def open_predictor(self, state: State, run: Run) -> AbstractContextManager[Predictor]:
        """Within it, what answers in the method's place: a policy holds its language model there and frees it afterwards."""
        return nullcontext(self)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        """Learns from the training users; `validation` (other users, labels included) is for choosing settings."""
        raise NotImplementedError
