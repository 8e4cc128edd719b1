"""How much likelier a text is after what the person chose than after what they rejected, to a language model."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.inference import likelihood
from harness.learning.shown import CutTexts, cut_texts, shown_choices
from harness.method import Continuations, Method, Run, State, TaskFacts, Users

# Written for this project. Raise Likelihood.version with any change, because another text is another method.
WITH_PROMPT = "Question: {}\nAnswer:"


@dataclass(frozen=True)
class Likelihood(Method):
    """The contrast log p(x | chosen) - log p(x | rejected) of a language model that is not trained.

    The model reads, as plain text and without a chat template, a list of the responses that the person chose, and goes on
    with the response x; then the same with the list of what the person rejected. A person whose chosen texts resemble x
    makes it likelier. What all texts share, their length and how common their words are, cancels.

    Where all items of a task answer one prompt, a list has a line for each response; otherwise each response follows its
    prompt, and only the tokens of the response x count. The lists have the same order: by the numbers of the pairs'
    items. Ties are left out. The first `max_examples` pairs are shown, with texts cut to `max_characters`. Where a task
    has candidates, each is scored once for every user and number of shots.
    """

    family = "language model"

    version: ClassVar[int] = 2  # chooses candidates too
    asks_model: ClassVar[bool] = True

    model: str = field(default="transformers:small", metadata={"identity": likelihood.canonical_reader})
    max_examples: int = 50  # pairs; two lists of 50 statements are about 1,000 tokens each
    max_characters: int = 600  # of each text, as in `in_context`

    def __post_init__(self) -> None:
        super().__post_init__()
        likelihood.parse_reader(self.model)
        if self.max_examples < 1 or self.max_characters < 1:
            raise UserError(
                f"likelihood: max_examples = {self.max_examples} and max_characters = {self.max_characters} must both be "
                "1 or more",
                "max_examples = 50, max_characters = 600",
            )

    def refuses(self, task: TaskFacts) -> str | None:
        return super().refuses(task) if task.has_text else "needs items with text"

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        return {}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        """Return the lists of each user, int64[n_users, k] each: items chosen and items rejected, -1 where there is none."""
        first, second, liked = shown_choices(context, self.max_examples)
        return tuple(torch.from_numpy(np.where(liked == 1, items, -1)) for items in (first, second))

    def questions(self, state: State, users: Users, query: Pairs) -> Continuations:
        """Return all items of each user's query pairs, after the user's first list; then the same after the second."""
        user, item = asked_items(query)
        asked, row = np.unique(user, return_inverse=True)
        lists = [t.numpy()[asked] for t in users]
        table = query.items.known_text
        text = cut_texts(table, np.concatenate([item, *(part.ravel() for part in lists)]), self.max_characters)
        alone = len(table["prompt"].unique()) == 1
        begun = [[self.list_text(text, items, alone) for items in part] for part in lists]
        leads = ["" if alone else WITH_PROMPT.format(text[i][0]) for i in item.tolist()]
        texts = [text[i][1] if alone else f" {text[i][1]}" for i in item.tolist()]
        beginnings = [part[i] for part in begun for i in row.tolist()]
        return Continuations(self.model, beginnings, leads * 2, texts * 2)

    def score_answers(self, log_odds: np.ndarray, query: Pairs) -> torch.Tensor:
        """Return the difference of the items' contrasts; 0 where one of the four log-likelihoods is missing."""
        chosen, rejected = np.split(np.asarray(log_odds), 2)
        n = len(query.items)
        user, item = asked_items(query)
        asked = user * n + item
        left, right = (np.searchsorted(asked, query.user * np.int64(n) + side) for side in (query.left, query.right))
        contrast = chosen - rejected
        return torch.from_numpy(np.nan_to_num(contrast[left] - contrast[right]))

    @staticmethod
    def list_text(text: CutTexts, rows: np.ndarray, alone: bool) -> str:
        """Return the text of one list of items, without those numbered -1; alone: without their prompts."""
        lines = []
        for i in rows[rows >= 0].tolist():
            prompt, response = text[i]
            lines.append(f"{response}\n" if alone else f"{WITH_PROMPT.format(prompt)} {response}\n\n")
        return "".join(lines)


def asked_items(query: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return user int64[m] and item int64[m]: each item of each user's pairs once, sorted by user and item."""
    n, user = np.int64(len(query.items)), query.user.astype(np.int64)
    asked = np.unique(np.concatenate([user * n + query.left, user * n + query.right]))
    return asked // n, asked % n
