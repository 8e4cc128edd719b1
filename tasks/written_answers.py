"""Answers that a language model writes to everyday questions, rated by text scorers and by personas as a model knows them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from harness.errors import UserError, error_prefix
from harness.inference import generate, raters
from harness.inference.role_play import TRAIT_DESCRIPTIONS
from harness.sources.public_files import files_content_digest
from harness.sources.text_world import PROMPTS, write_response
from harness.store.store import Store
from harness.table_files import filled_texts, read_table
from harness.task import FOLD_COUNT
from tasks.attributes import canonical_writer
from tasks.model_raters import MIN_RATERS, MIN_RESPONSES_TO_CHOOSE, ModelRaters, check_numbers

MANNERS = [manner for both in TRAIT_DESCRIPTIONS.values() for manner in both]
# In the user's turn: small models do not hear the system line. Nearly all answers then end within 80 tokens.
INSTRUCTION = "{} Answer in one short sentence. Your answer must be {}."
QUESTIONS = (  # written for this project
    "How do I boil an egg?",
    "What should I do on a rainy day?",
    "Why is the sky blue?",
    "My neighbour is too loud at night. What can I do?",
    "How can I sleep better?",
    "What is a good present for my mother?",
    "How do I learn to swim?",
    "Why do cats purr?",
    "Should I buy a car or take the bus?",
    "How do I clean a burnt pan?",
    "What can I cook with potatoes?",
    "How do I say no to a friend?",
    "Why do leaves turn red in autumn?",
    "What is the best way to save money?",
    "How do I start to run?",
    "My plant is dying. What is wrong?",
    "How do I fix a flat tyre?",
    "What should I wear to a wedding?",
    "How do I make new friends in a new city?",
    "Why is the sea salty?",
    "How can I stop biting my nails?",
    "What is a good name for a dog?",
    "How do I ask for more pay?",
    "Is it too late to learn the piano?",
    "How do I keep bread fresh?",
    "What should I read on holiday?",
    "Why do we dream?",
    "How do I get my child to eat vegetables?",
    "What can I do about a headache?",
    "How do I write a letter of thanks?",
    "Should I apologise first after a quarrel?",
    "How does a fridge work?",
    "What is a good hobby for the winter?",
    "How do I speak in front of many people?",
    "Why do onions make me cry?",
    "How do I pack a small suitcase?",
    "What makes a good teacher?",
    "How can I use my phone less?",
    "How do I choose a good melon?",
    "What should I do when I am bored?",
)


@dataclass(frozen=True)
class WrittenAnswers(ModelRaters):
    """A task without people: a model writes answers in different manners, and raters that are no people judge them.

    `writer` answers each question `answers` times, each time in another manner, which the user's turn asks for: seven
    traits and their opposites, as in the task `attributes`. `file` is a table with a column prompt; without it, QUESTIONS
    are asked. With `writer = "templates"` no language model writes, but the simulator of `attributes`, to its own prompts.

    `raters` names text scorers (`manyminds score` explains them), reward models ENGINE:MODEL, and
    likelihood:ENGINE:MODEL, which stands for many raters: the personas of harness/inference/raters.py, or those of
    `personas`, a table with the columns name and description. A persona likes an answer as much as the model thinks
    that it is the persona's, in comparison with people of whom nothing is said. So these raters tell how methods learn
    tastes that a language model knows, and nothing about people.

    Pairs, prompts and candidates are as in the task `model_raters`. A fifth of the raters are test raters, and the next
    fifth validation raters; five successive seeds test each rater once.
    """

    version = 1
    family = "written by models"
    paper = "Barreto et al. 2025, Reward-Feature Models"
    form_matters = True
    caveat = "the raters are text scorers or a language model, not people"

    writer: str = field(default="templates", metadata={"identity": canonical_writer})
    answers: int = 8  # to each question, at most one in each of the 14 manners
    raters: tuple[str, ...] = field(
        default=("words", "sentence_words", "word_letters", "second_person", "casual", "lix", "mtld"),
        metadata={"identity": raters.canonical_rater_names},
    )
    personas: str = field(default="", metadata={"identity": False})  # `files_digest` identifies its content

    def __post_init__(self) -> None:
        super().__post_init__()
        canonical_writer(self.writer)
        raters.canonical_rater_names(self.raters)
        if self.personas and not any(name.startswith(raters.BY_LIKELIHOOD) for name in self.raters):
            raise UserError(
                "written_answers: personas are rated by a language model, and raters names none",
                'raters = ["likelihood:transformers:smollm"]',
            )
        if self.file and self.writer == "templates":
            raise UserError(
                "written_answers: templates answer the simulator's own prompts only",
                'leave out file, or name a model: writer = "transformers:smollm"',
            )
        if not MIN_RESPONSES_TO_CHOOSE <= self.answers <= len(MANNERS):
            raise UserError(
                f"written_answers: answers = {self.answers} must be {MIN_RESPONSES_TO_CHOOSE} to {len(MANNERS)}",
                "answers = 8",
            )

    def files_digest(self) -> str:
        files = {"questions": self.file, "personas": self.personas}
        return " ".join(f"{name} {files_content_digest(file)}" for name, file in files.items() if file)

    def read_ratings(self, store: Store | None = None) -> pl.DataFrame:
        """Return a row per distinct answer with its raters' scores. Raises NotCachedError for what no model made yet."""
        table = self.write_answers(store)
        prompts, answers = table["prompt"].to_list(), table["response"].to_list()
        personas = raters.read_personas(self.personas)
        found: dict[str, np.ndarray] = {}
        for name in self.raters:
            raters.add_scores(found, raters.rater_scores(name, prompts, answers, store, personas))
        if len(found) < MIN_RATERS:
            raise UserError(
                f"written_answers: {len(found)} raters ({', '.join(found) or 'none'}) are too few",
                f"at least {MIN_RATERS} are needed: two to train on, one for validation and one to test",
            )
        check_numbers(self.name, pl.DataFrame(found), list(found))
        return table.with_columns(pl.Series(name, scores) for name, scores in found.items())

    def rater_columns(self, table: pl.DataFrame) -> tuple[list[str], list[str]]:
        return [name for name in table.columns if name not in ("prompt", "response")], []

    def held_out_raters(self, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        if n < FOLD_COUNT:
            return super().held_out_raters(seed, n)
        fold = np.random.default_rng(n).permutation(n) % FOLD_COUNT
        return np.flatnonzero(fold == seed % FOLD_COUNT), np.flatnonzero(fold == (seed + 1) % FOLD_COUNT)

    def write_answers(self, store: Store | None) -> pl.DataFrame:
        """Return the columns prompt and response, a row for each distinct answer; the same for every seed."""
        questions = self.read_questions()
        rng = np.random.default_rng(len(questions))
        manner = [MANNERS[m] for _ in questions for m in rng.permutation(len(MANNERS))[: self.answers]]
        asked = [question for question in questions for _ in range(self.answers)]
        written: list[str | None] = []
        if self.writer == "templates":
            written += [
                write_response(q, int(s)) for q, s in zip(asked, rng.integers(2**31, size=len(asked)), strict=True)
            ]
        else:
            told = [INSTRUCTION.format(*parts) for parts in zip(asked, manner, strict=True)]
            found = generate.stored_candidates([None] * len(told), told, self.writer, 1, store)
            written += [answers[0] if answers else None for answers in found]
        table = pl.DataFrame(
            {"prompt": asked, "response": written}, schema={"prompt": pl.String, "response": pl.String}
        )
        return table.drop_nulls().unique(maintain_order=True)

    def read_questions(self) -> list[str]:
        """Return the questions, each once."""
        if not self.file:
            return list(QUESTIONS if self.writer != "templates" else PROMPTS[:: len(PROMPTS) // len(QUESTIONS)])
        with error_prefix(self.file):
            asked = filled_texts(read_table(Path(self.file)), "prompt", "a row is a question, in the column prompt")
        return list(dict.fromkeys(asked))
