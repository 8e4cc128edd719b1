"""Questions to language models with two possible answers: each is asked once, and the store keeps its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.asked import AskedRows, number_rows
from harness.inference.cache import ID_TYPE, id_array, text_id
from harness.inference.endpoint import EndpointAnswers, parse_endpoint
from harness.inference.jobs import Job, Worker
from harness.inference.tokens import token_lists, tokenise_prompts
from harness.models.names import LanguageModel, parse_model
from harness.models.tokens import tokenizer_and_limit
from harness.store.store import Store

JUDGE_DEFAULTS = {  # options of a judge; stored answers are found by these options and by the two possible answers
    "dtype": "float32",  # of weights and arithmetic; use bfloat16 on a GPU
    # Most tokens of a question and its answer. The KV cache of a 7B model then takes 2 GB; with the model's full
    # context it would take up to 16 GB.
    "max_length": 16_384,
}
DTYPES = ("float32", "bfloat16", "float16")
QUESTIONS_PER_BLOCK = 256  # about 200,000 tokens if in_context asks: seconds of work for a 7B model on one GPU


def parse_judge(name: str) -> LanguageModel:
    """Parse the name of a judge. Raises UserError for a wrong name or option."""
    if name.startswith("openai:"):
        return parse_endpoint(name, {"votes": 8})  # answers that are counted where a server returns no probabilities
    return parse_local_judge(name, ("prompt", "system"))


def parse_local_judge(name: str, inputs: tuple[str, ...] = ()) -> LanguageModel:
    """Parse the name of a model whose probabilities are read here; inputs: see `LanguageModel`. Raises UserError."""
    model = parse_model(name, JUDGE_DEFAULTS, inputs=inputs)
    if model["dtype"] not in DTYPES or model["max_length"] < 2:
        raise UserError(
            f"{name!r}: dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, and max_length at least 2",
            "for example ENGINE:MODEL?dtype=bfloat16&max_length=16384",
        )
    return model


def canonical_judge(name: str) -> str:
    """Return the canonical name of a judge, which keys of results contain in place of a method's field `model`."""
    return parse_judge(name).canonical_name


def stored_log_odds(
    name: str, systems: Sequence[str | None], prompts: Sequence[str], words: tuple[str, str], store: Store
) -> np.ndarray:
    """Return float64[n]: log-odds of the answer words[0] against words[1], as `AskedRows.stored` does."""
    return asked_log_odds(name, systems, prompts, words, store).stored()


def asked_log_odds(
    name: str, systems: Sequence[str | None], prompts: Sequence[str], words: tuple[str, str], store: Store
) -> AskedRows:
    """Return the questions with their place in the store."""
    return AskedRows(
        question_table(systems, prompts),
        lambda batches: answer_job(name, words, batches, store),
        "log_odds",
        "questions",
        store,
    )


def question_table(systems: Sequence[str | None], prompts: Sequence[str]) -> pa.Table:
    """Return a table with the columns id, system (may be null) and prompt, one row per question."""
    ids = [text_id(system, prompt) for system, prompt in zip(systems, prompts, strict=True)]
    columns = [pa.array(ids, ID_TYPE), pa.array(systems, pa.large_string()), pa.array(prompts, pa.large_string())]
    return pa.table(columns, names=["id", "system", "prompt"])


def answer_job(name: str, words: tuple[str, str], batches: Callable[[], Iterable[pa.Table]], store: Store) -> Job:
    """Return the job that asks questions. batches: returns the questions, as tables made by `question_table`."""
    words = words[0], words[1]  # a tuple, also where the caller gave a list
    model = parse_judge(name)
    remote = model.engine == "openai"
    recipe = EndpointAnswers(model, words=words) if remote else AnswerRecipe(name, words, store)
    return Job("answers", model.identity | {"words": list(words)}, recipe, batches)


def log_odds_of_both_orders(log_odds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-odds that left is preferred, when it is named first and when it is named second, float64[n] each.

    log_odds: float64[2 n], answers to the questions with left named first, then to those with right named first. If one
    of the two answers is missing, both results are 0, because the other alone would keep the model's position bias.
    """
    first, second = np.split(np.asarray(log_odds), 2)
    known = np.isfinite(first) & np.isfinite(second)
    return np.where(known, first, 0.0), np.where(known, -second, 0.0)


@dataclass(frozen=True)
class AnswerRecipe:
    """The recipe of a language model's answers, which depend on `name` and `words` alone.

    name: the model's name.  words: the two possible answers.
    store: contains the files of the project's own small model.
    tensor_parallel: number of GPUs for one model.
    rows_per_block, cpus: see `jobs.Recipe`.
    """

    name: str
    words: tuple[str, str]
    store: Store
    tensor_parallel: int = 1
    rows_per_block: int = QUESTIONS_PER_BLOCK
    cpus: int = 0

    def check(self) -> None:
        from harness.models.inputs import check_prompt_template, open_tokenizer
        from harness.models.tokens import first_tokens

        model = parse_judge(self.name)
        model.check_available(self.store)
        tokenizer = open_tokenizer(model.model_folder(self.store))
        check_prompt_template(tokenizer)
        first_tokens(tokenizer, self.words)

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Tokenise the questions (int32). Empty, undecodable and over-long questions become errors."""
        model = parse_judge(self.name)
        tokens, limit = tokenizer_and_limit(model, model["max_length"], self.store)
        remedy = "shorten the prompt (in_context: lower max_characters or max_examples)"
        too_long = f"more than the {{}} that the model reads: {remedy}"
        return tokenise_prompts(tokens, table, limit - 1, too_long)  # one token is left for the answer

    def start(self) -> Worker:
        from harness.models.engine import open_engine

        model = parse_judge(self.name)
        engine = open_engine(
            model.engine,
            model.model_folder(self.store),
            "answer",
            dtype=model["dtype"],
            max_length=model["max_length"],
            tensor_parallel=self.tensor_parallel,
        )

        def answer(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            ids, tokens = id_array(ready["id"]), token_lists(ready["tokens"])
            found = engine.answer(tokens, self.words) if len(ids) else np.empty(0)
            return *number_rows(ids, found.astype(np.float32), "log_odds"), {"tokens": sum(map(len, tokens))}

        return answer
