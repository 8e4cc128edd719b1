"""A language model is shown a user's earlier choices, or what the user wrote of himself, and says what he prefers (PReF 5.3)."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from harness.data import Pairs, Panel
from harness.errors import Mistake
from harness.inference import answer
from harness.method import Manifest, Method, Questions, Run, State, Users

# Ours, written for this. Raise InContext.version with any change: another prompt is another method.
SYSTEM = "Say which response this person prefers. Their own taste counts, not what is better in general. Answer A or B."
PROFILE = "This person writes:\n{}\n\n"
CHOICES = "Earlier choices:\n\n"
QUESTION = "New choice:\n\n{}\n\nA or B?"
ANSWERS = ("A", "B")
LIKED, DISLIKED, EQUAL = "Preferred", "Rejected", "Equally good"

Text = dict[int, tuple[str, str]]  # an item's row -> its prompt and response, cut


@dataclass(frozen=True)
class InContext(Method):
    """Nothing is trained: the log-odds of the answers A and B under `model`, which judges by what it is shown of a user.

    view: `context`, the user's context pairs, as in PReF's in-context baseline (there a model writes for the user; here,
    as in RFM's, it judges); `profile`, what he wrote of himself; or both. Without either it asks for the model's own
    preference.
    Every pair is asked in both orders and the two log-odds are averaged, (z(left as A) - z(right as A)) / 2, so what the
    model adds for a position cancels; a pair of which one order could not be answered is undecided. Context pairs stand in the order of their items' numbers, each once (the mean of
    its labels) and the preferred response first, so neither order nor side of an answer tells anything, and no letter
    is more frequent among the examples. Where there are more than `most`, the first of them are shown.
    A question has at most (3 `most` + 4) x `room` characters of texts, (4 `most` + 5) x `room` where the two of a pair
    answer different prompts, and some 300 + 40 `most` of ours. One that is longer than the model reads is an error.
    """

    version: ClassVar[int] = 1
    asks: ClassVar[bool] = True

    model: str = field(default="transformers:small", metadata={"identity": answer.canonical})
    view: Literal["context", "profile", "profile+context"] = "context"
    most: int = 20  # context pairs shown
    room: int = 600  # characters of each text, cut at its end: with 20 pairs that is at most 10,000 tokens of English

    def __post_init__(self) -> None:
        super().__post_init__()
        answer.make_judge(self.model)
        if self.most < 1 or self.room < 1:
            raise Mistake(f"in_context: most = {self.most}, room = {self.room} show nothing", "most = 20, room = 600")

    def refuses(self, task: Manifest) -> str | None:
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
        shown = place < self.most
        table = np.full((3, context.n_users, min(self.most, place.max(initial=-1) + 1)), -1, dtype=np.int64)
        columns = np.where(gap < 0, high, low), np.where(gap < 0, low, high), (gap != 0)
        table[:, user[shown], place[shown]] = np.stack(columns)[:, shown]
        return (person, *map(torch.from_numpy, table))

    def ask(self, state: State, users: Users, query: Pairs) -> Questions:
        """All pairs with left named first, then all with right named first."""
        asked, user = np.unique(query.user, return_inverse=True)
        person, *shown = (t.numpy()[asked] for t in users)
        text = texts(
            query.items.text, np.concatenate([query.left, query.right, *(s.ravel() for s in shown[:2])]), self.room
        )
        heads = [
            self.profile(query.profiles, one) + choices(text, *rows) for one, *rows in zip(person, *shown, strict=True)
        ]
        pairs = list(zip(user.tolist(), query.left.tolist(), query.right.tolist(), strict=True))
        orders = [(u, a, b) for u, a, b in pairs] + [(u, b, a) for u, a, b in pairs]
        prompts = [heads[u] + QUESTION.format(told(text, (a, "A"), (b, "B"))) for u, a, b in orders]
        return Questions(self.model, ANSWERS, [SYSTEM] * len(prompts), prompts)

    def read(self, log_odds: np.ndarray, query: Pairs) -> torch.Tensor:
        first, second = answer.both_orders(log_odds)
        return torch.from_numpy(first + second) / 2

    def profile(self, profiles: pa.Array | None, person: int) -> str:
        if self.view == "context" or profiles is None:
            return ""
        written = profiles[int(person)].as_py() or ""
        return PROFILE.format(cut(written, self.room)) if written.strip() else ""


def choices(text: Text, first: np.ndarray, second: np.ndarray, liked: np.ndarray) -> str:
    """One user's context pairs."""
    blocks = [
        told(text, (a, LIKED if c else EQUAL), (b, DISLIKED if c else EQUAL))
        for a, b, c in zip(first.tolist(), second.tolist(), liked.tolist(), strict=True)
        if c >= 0
    ]
    return CHOICES + "\n\n".join(blocks) + "\n\n" if blocks else ""


def told(text: Text, one: tuple[int, str], other: tuple[int, str]) -> str:
    """Two items under their names; the prompt once where they share it."""
    (a, name_a), (b, name_b) = one, other
    (prompt_a, response_a), (prompt_b, response_b) = text[a], text[b]
    again = f"Prompt: {prompt_b}\n" if prompt_b != prompt_a else ""
    return f"Prompt: {prompt_a}\n{name_a}: {response_a}\n{again}{name_b}: {response_b}"


def texts(table: pa.Table, rows: np.ndarray, room: int) -> Text:
    """Those of the given rows, each at most `room` characters; rows below 0 are none."""
    rows = np.unique(rows[rows >= 0])
    found = table.take(pa.array(rows))
    prompts, responses = (found[name].to_pylist() for name in ("prompt", "response"))
    return {r: (cut(p, room), cut(s, room)) for r, p, s in zip(rows.tolist(), prompts, responses, strict=True)}


def cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
