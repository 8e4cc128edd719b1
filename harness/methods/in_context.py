"""A language model is shown a user's earlier choices, or what the user wrote of himself, and says what he prefers (PReF 5.3)."""

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

# Ours, written for this. Raise InContext.version with any change: another prompt is another method.
SYSTEM_PROMPT = (
    "Say which response this person prefers. Their own taste counts, not what is better in general. Answer A or B."
)
PROFILE_TEMPLATE = "This person writes:\n{}\n\n"
CHOICES_HEADING = "Earlier choices:\n\n"
QUESTION_TEMPLATE = "New choice:\n\n{}\n\nA or B?"
JUDGE_WORDS = ("A", "B")
LIKED, DISLIKED, EQUAL = "Preferred", "Rejected", "Equally good"

CutTexts = dict[int, tuple[str, str]]  # an item's row -> its prompt and response, cut


@dataclass(frozen=True)
class InContext(Method):
    """Nothing is trained: the log-odds of the answers A and B under `model`, which judges by what it is shown of a user.

    view: `context`, the user's context pairs, as in PReF's in-context baseline (there a model writes for the user; here,
    as in RFM's, it judges); `profile`, what he wrote of himself; or both. Without either it asks for the model's own
    preference.
    Every pair is asked in both orders and the two log-odds are averaged, (z(left as A) - z(right as A)) / 2, so what the
    model adds for a position cancels; a pair of which one order could not be answered is undecided. Context pairs stand in the order of their items' numbers, each once (the mean of
    its labels) and the preferred response first, so neither order nor side of an answer tells anything, and no letter
    is more frequent among the examples. Where there are more than `max_examples`, the first of them are shown.
    A question has at most (3 `max_examples` + 4) x `max_characters` characters of texts, (4 `max_examples` + 5) x `max_characters` where the two of a pair
    answer different prompts, and some 300 + 40 `max_examples` of ours. One that is longer than the model reads is an error.
    """

    version: ClassVar[int] = 1
    asks_model: ClassVar[bool] = True

    model: str = field(default="transformers:small", metadata={"identity": answer.canonical_judge})
    view: Literal["context", "profile", "profile+context"] = "context"
    max_examples: int = renamed_field(20, formerly="most")  # context pairs shown
    max_characters: int = renamed_field(
        600, formerly="room"
    )  # characters of each text, cut at its end: with 20 pairs that is at most 10,000 tokens of English

    def __post_init__(self) -> None:
        super().__post_init__()
        answer.parse_judge(self.model)
        if self.max_examples < 1 or self.max_characters < 1:
            raise UserError(
                f"in_context: max_examples = {self.max_examples}, max_characters = {self.max_characters} show nothing",
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
        """What is shown: the person int64[n_users]; items first and second, and liked, int64[n_users, k], -1 where none.

        liked: 1 where first is preferred to second, 0 where neither is.
        """
        person = torch.from_numpy(context.people.astype(np.int64))
        pairs = context.first(0) if self.view == "profile" else context
        low, high = np.minimum(pairs.left, pairs.right), np.maximum(pairs.left, pairs.right)
        distinct, row = np.unique(np.stack([pairs.user, low, high]), axis=1, return_inverse=True)
        label = np.where(pairs.left == low, pairs.label, 1 - pairs.label).astype(np.float64)
        gap = np.round(np.bincount(row, label - 0.5) / np.bincount(row), 6)  # rounding is no preference
        user, low, high = distinct
        place = np.arange(len(user)) - np.searchsorted(user, user)
        shown = place < self.max_examples
        table = np.full((3, context.n_users, min(self.max_examples, place.max(initial=-1) + 1)), -1, dtype=np.int64)
        columns = np.where(gap < 0, high, low), np.where(gap < 0, low, high), (gap != 0)
        table[:, user[shown], place[shown]] = np.stack(columns)[:, shown]
        return (person, *map(torch.from_numpy, table))

    def questions(self, state: State, users: Users, query: Pairs) -> Questions:
        """All pairs with left named first, then all with right named first."""
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
        if self.view == "context" or profiles is None:
            return ""
        written = profiles[int(person)].as_py() or ""
        return PROFILE_TEMPLATE.format(cut_text(written, self.max_characters)) if written.strip() else ""


def choices_text(text: CutTexts, first: np.ndarray, second: np.ndarray, liked: np.ndarray) -> str:
    """One user's context pairs."""
    blocks = [
        pair_text(text, (a, LIKED if c else EQUAL), (b, DISLIKED if c else EQUAL))
        for a, b, c in zip(first.tolist(), second.tolist(), liked.tolist(), strict=True)
        if c >= 0
    ]
    return CHOICES_HEADING + "\n\n".join(blocks) + "\n\n" if blocks else ""


def pair_text(text: CutTexts, one: tuple[int, str], other: tuple[int, str]) -> str:
    """Two items under their names; the prompt once where they share it."""
    (a, name_a), (b, name_b) = one, other
    (prompt_a, response_a), (prompt_b, response_b) = text[a], text[b]
    again = f"Prompt: {prompt_b}\n" if prompt_b != prompt_a else ""
    return f"Prompt: {prompt_a}\n{name_a}: {response_a}\n{again}{name_b}: {response_b}"


def cut_texts(table: pa.Table, rows: np.ndarray, max_characters: int) -> CutTexts:
    """Those of the given rows, each at most `max_characters` characters; rows below 0 are none."""
    rows = np.unique(rows[rows >= 0])
    found = table.take(pa.array(rows))
    prompts, responses = (found[name].to_pylist() for name in ("prompt", "response"))
    return {
        r: (cut_text(p, max_characters), cut_text(s, max_characters))
        for r, p, s in zip(rows.tolist(), prompts, responses, strict=True)
    }


def cut_text(text: str, max_characters: int) -> str:
    """Shorten a text to at most so many characters, the last of them an ellipsis where it was cut."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"
