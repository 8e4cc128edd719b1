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
from harness.inference.generate import likeliest_writer, stored_candidates
from harness.learning.shown import CutTexts, cut_text, cut_texts, shown_choices
from harness.method import Method, Questions, Run, State, TaskFacts, Users

# Written for this project. Raise InContext.version with any change, because another prompt is another method.
SYSTEM_PROMPT = (
    "Say which response this person prefers. Their own taste counts, not what is better in general. Answer A or B."
)
PROFILE_TEMPLATE = "This person writes:\n{}\n\n"
CHOICES_HEADING = "Earlier choices:\n\n"
QUESTION_TEMPLATE = "New choice:\n\n{}\n\nA or B?"
JUDGE_WORDS = ("A", "B")
PERSONA_SYSTEM_PROMPT = "You describe people by their choices, briefly and without flattery."
PERSONA_REQUEST = (
    "{}For each choice, think of the reason that explains it best. Then describe in a few sentences what this person likes "
    "and dislikes in a response, so that somebody else could make the person's next choice. Write the description alone."
)
PERSONA_TEMPLATE = "This person is described so:\n{}\n\n"
MAX_PERSONA_TOKENS = 200
LIKED, DISLIKED, EQUAL = "Preferred", "Rejected", "Equally good"


@dataclass(frozen=True)
class InContext(Method):
    """An untrained judge: the log-odds that the language model `model` answers A, not B, when asked about the user.

    view: what a question shows about the user. `context`: their context pairs, as in PReF's in-context baseline.
    `profile`: what they wrote about themselves. `persona`: what the model itself wrote about them after reading their
    context pairs (at temperature 0), in the way of SynthesizeMe (Ryan et al. 2025), without its choice among several
    personas by held-back pairs. `profile+context`, `persona+context`: both. Where there is nothing to show, the model
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

    A judge with a prompt of its own is a subclass in a file of its own, which sets `system_prompt`, `question_template`
    and `answer_words`, or defines `person_text`.

    Departures: in PReF the model writes responses for the user, and here it judges pairs. The prompts are this
    project's own, both orders of a pair are asked, and at most `max_examples` pairs are shown, with texts cut.
    """

    family = "language model"
    paper = "Shenfeld et al. 2025, PReF"

    version: ClassVar[int] = 1
    asks_model: ClassVar[bool] = True

    system_prompt: ClassVar[str] = SYSTEM_PROMPT
    question_template: ClassVar[str] = QUESTION_TEMPLATE  # with a place for both responses
    answer_words: ClassVar[tuple[str, str]] = JUDGE_WORDS  # for the response named A, and for that named B

    model: str = field(default="transformers:small", metadata={"identity": answer.canonical_judge})
    view: Literal["context", "profile", "profile+context", "persona", "persona+context"] = "context"
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

    @property
    def has_rewards(self) -> bool:
        return False  # it is shown pairs

    def refuses(self, task: TaskFacts) -> str | None:
        if not task.has_text:
            return "needs items with text"
        if "profile" in self.view and not task.has_profiles:
            return f'view = "{self.view}" needs people who wrote about themselves'
        return super().refuses(task)

    def fit(self, train: Pairs, validation: Panel, run: Run) -> State:
        return {}

    def adapt(self, state: State, context: Pairs, run: Run) -> Users:
        """Return what each question shows: person int64[n_users], then first, second and liked, int64[n_users, k] each.

        first, second: the items of each context pair; -1 where there is none.
        liked: 1 where first is preferred to second, 0 for a tie, -1 where there is no pair.
        With a view of personas, also their texts: uint8[n_users, longest], in UTF-8, 0 after the end.
        """
        person = torch.from_numpy(context.people.astype(np.int64))
        shown = context if "context" in self.view else context.first(0)
        users = (person, *map(torch.from_numpy, shown_choices(shown, self.max_examples)))
        if "persona" not in self.view:
            return users
        written = [text.encode() for text in self.write_personas(context, run)]
        table = np.zeros((len(written), max(map(len, written), default=0)), dtype=np.uint8)
        for row, text in zip(table, written, strict=True):
            row[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        return (*users, torch.from_numpy(table))

    def write_personas(self, context: Pairs, run: Run) -> list[str]:
        """Return what the model writes about each person by their choices; "" where there are none.

        Raises NotCachedError where it has not written some yet.
        """
        first, second, liked = shown_choices(context, self.max_examples)
        text = cut_texts(context.items.known_text, np.concatenate([first.ravel(), second.ravel()]), self.max_characters)
        known = [choices_text(text, *rows) for rows in zip(first, second, liked, strict=True)]
        asked = [PERSONA_REQUEST.format(choices) for choices in known if choices]
        writer = likeliest_writer(self.model, MAX_PERSONA_TOKENS)
        found = iter(
            stored_candidates([PERSONA_SYSTEM_PROMPT] * len(asked), asked, writer, 1, run.store) if asked else []
        )
        # a text that ends within a character, or holds none, would make the question unreadable
        written = ["".join(next(found)).replace("\ufffd", "").replace("\0", "") if choices else "" for choices in known]
        return [text.strip() for text in written]

    def questions(self, state: State, users: Users, query: Pairs) -> Questions:
        """Return the questions for all pairs with left first, then for all pairs with right first."""
        asked, user = np.unique(query.user, return_inverse=True)
        person, first, second, liked, *written = (t.numpy()[asked] for t in users)
        text = cut_texts(
            query.items.text,
            np.concatenate([query.left, query.right, first.ravel(), second.ravel()]),
            self.max_characters,
        )
        personas = [row.tobytes().rstrip(b"\0").decode() for row in written[0]] if written else [""] * len(asked)
        heads = [
            self.person_text(self.profile_of(query.profiles, one), persona, choices_text(text, *rows))
            for one, persona, *rows in zip(person, personas, first, second, liked, strict=True)
        ]
        pairs = list(zip(user.tolist(), query.left.tolist(), query.right.tolist(), strict=True))
        orders = [(u, a, b) for u, a, b in pairs] + [(u, b, a) for u, a, b in pairs]
        prompts = [heads[u] + self.question_template.format(pair_text(text, (a, "A"), (b, "B"))) for u, a, b in orders]
        return Questions(self.model, self.answer_words, [self.system_prompt] * len(prompts), prompts)

    def person_text(self, profile: str, persona: str, choices: str) -> str:
        """Return the prompt's part about a person; each of the three is "" where it is not shown.

        profile: what they wrote about themselves.  persona: what the model wrote about them.  choices: their context pairs.
        """
        about = PROFILE_TEMPLATE.format(profile) if profile else ""
        return about + (PERSONA_TEMPLATE.format(persona) if persona else "") + choices

    def score_answers(self, log_odds: np.ndarray, query: Pairs) -> torch.Tensor:
        first, second = answer.log_odds_of_both_orders(log_odds)
        return torch.from_numpy(first + second) / 2

    def answer_facts(self, log_odds: np.ndarray, query: Pairs) -> dict[str, float]:
        first, second = np.split(log_odds, 2)
        known = np.isfinite(first) & np.isfinite(second)
        if not known.any():
            return {}
        agree = np.sign(first[known]) == -np.sign(second[known])
        return {
            "orders_agree": float(agree.mean()),
            "first_named": float((np.concatenate([first[known], second[known]]) > 0).mean()),
        }

    def profile_of(self, profiles: pa.Array | None, person: int) -> str:
        """Return what a person wrote about themselves; "" where the view does not show it, or there is nothing."""
        if "profile" not in self.view or profiles is None:
            return ""
        written = profiles[int(person)].as_py() or ""
        return cut_text(written, self.max_characters) if written.strip() else ""


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
