"""A language model predicts a user's choices from earlier choices or a self-description in its prompt (PReF 5.3)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from harness.data import Pairs, Panel
from harness.errors import UserError
from harness.fields import renamed_field
from harness.inference import answer
from harness.method import Method, Questions, Run, State, TaskFacts, Users

# Written for this project. Raise InContext.version with any change, because another prompt is another method.
SYSTEM_PROMPT = (
    "Say which response this person prefers. Their own taste counts, not what is better in general. Answer A or B."
)
PROFILE_TEMPLATE = "This person writes:\n{}\n\n"
CHOICES_HEADING = "Earlier choices:\n\n"
QUESTION_TEMPLATE = "New choice:\n\n{}\n\nA or B?"
JUDGE_WORDS = ("A", "B")
LIKED, DISLIKED, EQUAL = "Preferred", "Rejected", "Equally good"

CutTexts = dict[int, tuple[str, str]]  # row of an item -> its prompt and response, each cut to `max_characters`


@dataclass(frozen=True)
class InContext(Method):
    """An untrained judge: the log-odds that the language model `model` answers A, not B, when asked about the user.

    view: what a question shows about the user. `context`: their context pairs, as in PReF's in-context baseline.
    `profile`: what they wrote about themselves. `profile+context`: both. Where there is nothing to show, the model
    answers by its own preference.
    Every pair is asked in both orders and the two log-odds are averaged, (z(left as A) - z(right as A)) / 2, so that
    the model's position bias cancels. A pair has log-odds 0 if either question has no answer.
    Context pairs are sorted by their items' row numbers, and the preferred response comes first. So neither the order
    of the context nor the side of a response carries information. A pair that occurs several times is shown once, with
    the mean of its labels. Responses in context are marked Preferred and Rejected, so that neither A nor B is more
    frequent there. Only the first `max_examples` pairs are shown.
    A question has at most (3 `max_examples` + 4) x `max_characters` characters of task texts, or (4 `max_examples` + 5)
    x `max_characters` where the two items of a pair answer different prompts. The method's own words add about 300 + 40
    `max_examples` characters. A question longer than the model's context is an error.

    Departures: in PReF the model writes responses for the user, and here it judges pairs. The prompts are this
    project's own, both orders of a pair are asked, and at most `max_examples` pairs are shown, with texts cut.
    """

    family = "language model"
    paper = "PReF"

    version: ClassVar[int] = 1
    asks_model: ClassVar[bool] = True

    model: str = field(default="transformers:small", metadata={"identity": answer.canonical_judge})
    view: Literal["context", "profile", "profile+context"] = "context"
    max_examples: int = renamed_field(20, formerly="most")  # context pairs shown
    max_characters: int = renamed_field(600, formerly="room")  # of each text; 20 pairs are then at most 10,000 tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        answer.parse_judge(self.model)
        if self.max_examples < 1 or self.max_characters < 1:
            raise UserError(
                f"in_context: max_examples = {self.max_examples} and max_characters = {self.max_characters} must both "
                "be 1 or more",
                "max_examples = 20, max_characters = 600",
            )

    def refuses(self, task: TaskFacts) -> str | None:
        if not task.has_text:
            return "needs items with text"
        if self.view != "context" and not task.has_profiles:
            return f'view = "{self.view}" needs people who wrote about themselves'
        return super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        return {}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        """Return what each question shows: person int64[n_users], then first, second and liked, int64[n_users, k] each.

        first, second: the items of each context pair; -1 where there is none.
        liked: 1 where first is preferred to second, 0 for a tie, -1 where there is no pair.
        """
        person = torch.from_numpy(context.people.astype(np.int64))
        pairs = context.first(0) if self.view == "profile" else context
        low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
        distinct, row = np.unique(np.stack([pairs.user, low, high]), axis=1, return_inverse=True)
        label = np.where(pairs.left == low, pairs.label, 1 - pairs.label).astype(np.float64)
        gap = np.round(np.bincount(row, label - 0.5) / np.bincount(row), 6)  # rounding errors are not preferences
        user, low, high = distinct
        place = np.arange(len(user)) - np.searchsorted(user, user)
        shown = place < self.max_examples
        table = np.full((3, context.n_users, min(self.max_examples, place.max(initial=-1) + 1)), -1, dtype=np.int64)
        columns = np.where(gap < 0, high, low), np.where(gap < 0, low, high), (gap != 0)
        table[:, user[shown], place[shown]] = np.stack(columns)[:, shown]
        return (person, *map(torch.from_numpy, table))

    def questions(self, state: State, users: Users, query: Pairs) -> Questions:
        """Return the questions for all pairs with left first, then for all pairs with right first."""
        asked, user = np.unique(query.user, return_inverse=True)
        person, *shown = (t.numpy()[asked] for t in users)
        text = cut_texts(
            query.items.text,
            np.concatenate([query.left, query.right, *(s.ravel() for s in shown[:2])]),
            self.max_characters,
        )
        heads = [
            self.profile_text(query.profiles, one) + choices_text(text, *rows)
            for one, *rows in zip(person, *shown, strict=True)
        ]
        pairs = list(zip(user.tolist(), query.left.tolist(), query.right.tolist(), strict=True))
        orders = [(u, a, b) for u, a, b in pairs] + [(u, b, a) for u, a, b in pairs]
        prompts = [heads[u] + QUESTION_TEMPLATE.format(pair_text(text, (a, "A"), (b, "B"))) for u, a, b in orders]
        return Questions(self.model, JUDGE_WORDS, [SYSTEM_PROMPT] * len(prompts), prompts)

    def score_answers(self, log_odds: np.ndarray, query: Pairs) -> torch.Tensor:
        first, second = answer.log_odds_of_both_orders(log_odds)
        return torch.from_numpy(first + second) / 2

    def profile_text(self, profiles: pa.Array | None, person: int) -> str:
        """Return the prompt's part about what a person wrote about themselves; empty where there is none."""
        if self.view == "context" or profiles is None:
            return ""
        written = profiles[int(person)].as_py() or ""
        return PROFILE_TEMPLATE.format(cut_text(written, self.max_characters)) if written.strip() else ""


def choices_text(text: CutTexts, first: np.ndarray, second: np.ndarray, liked: np.ndarray) -> str:
    """Format one user's context pairs; first, second, liked: as returned by `InContext.adapt`."""
    blocks = [
        pair_text(text, (a, LIKED if c else EQUAL), (b, DISLIKED if c else EQUAL))
        for a, b, c in zip(first.tolist(), second.tolist(), liked.tolist(), strict=True)
        if c >= 0
    ]
    return CHOICES_HEADING + "\n\n".join(blocks) + "\n\n" if blocks else ""


def pair_text(text: CutTexts, one: tuple[int, str], other: tuple[int, str]) -> str:
    """Format two items: a prompt, and a response after its name, such as `A`. A prompt of both is written once."""
    (a, name_a), (b, name_b) = one, other
    (prompt_a, response_a), (prompt_b, response_b) = text[a], text[b]
    again = f"Prompt: {prompt_b}\n" if prompt_b != prompt_a else ""
    return f"Prompt: {prompt_a}\n{name_a}: {response_a}\n{again}{name_b}: {response_b}"


def cut_texts(table: pa.Table, rows: np.ndarray, max_characters: int) -> CutTexts:
    """Return the texts of the given rows, each cut to `max_characters` characters; rows below 0 are skipped."""
    rows = np.unique(rows[rows >= 0])
    found = table.take(pa.array(rows))
    prompts, responses = (found[name].to_pylist() for name in ("prompt", "response"))
    return {
        r: (cut_text(p, max_characters), cut_text(s, max_characters))
        for r, p, s in zip(rows.tolist(), prompts, responses, strict=True)
    }


def cut_text(text: str, max_characters: int) -> str:
    """Cut a text to at most `max_characters` characters, the last an ellipsis if it was cut."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"
