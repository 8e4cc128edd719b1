"""A reward model of the field, such as Skywork-Reward or ArmoRM, that scores responses for everybody alike."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.inference import encode
from harness.method import ItemRewards, Method, Run, State, TaskFacts, Users


@dataclass(frozen=True)
class RewardModel(Method):
    """The output of one head of a sequence-classification model: a reward that nobody's answers change.

    The model reads prompt and response by its own chat template, or without one as its tokenizer's two parts. What it
    scores is what its makers trained it for; the swap control finds no loss, since everybody gets the same reward. As
    features for methods that do learn, name it as an encoder: "transformers:MODEL?pooling=heads", or of=both&pooling=last
    for the state that the heads read.
    """

    family = "language model"

    version: ClassVar[int] = 2  # chooses candidates too
    asks_model: ClassVar[bool] = True

    model: str = field(default="", metadata={"identity": encode.canonical_reward_model})  # there is none by default
    head: int = 0  # of a model with several

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model:
            encode.parse_encoder(encode.reward_model_name(self.model))
        if self.head < 0:
            raise UserError(f"reward_model: head = {self.head} is below 0", "head = 0 is the first")

    def refuses(self, task: TaskFacts) -> str | None:
        if not self.model:
            return 'needs a reward model: model = "transformers:org/name@REVISION", or a folder'
        return super().refuses(task) if task.has_text else "needs items with text"

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        return {}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        return (torch.zeros(context.n_users),)

    def questions(self, state: State, users: Users, query: Pairs) -> ItemRewards:
        """Return all items of the query pairs, each once, by number."""
        text = query.items.known_text.take(np.unique(np.concatenate([query.left, query.right])))
        return ItemRewards(self.model, self.head, text["prompt"].to_pylist(), text["response"].to_pylist())

    def score_answers(self, log_odds: np.ndarray, query: Pairs) -> torch.Tensor:
        """Return the difference of rewards; 0 where one is missing."""
        item = np.unique(np.concatenate([query.left, query.right]))
        left, right = (np.searchsorted(item, side) for side in (query.left, query.right))
        return torch.from_numpy(np.nan_to_num(log_odds[left] - log_odds[right]))
