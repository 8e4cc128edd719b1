"""Candidate responses: n per prompt, sampled once, kept in the store and shared by all methods."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.cache import ID_TYPE, SAMPLE_SCHEMA, check_error_rate, error_table, id_array, text_id
from harness.inference.endpoint import EndpointSamples, parse_endpoint
from harness.inference.jobs import Job, NotCachedError, Worker, require_store
from harness.inference.tokens import token_lists, tokenise_prompts
from harness.models.base import Sample
from harness.models.names import LanguageModel, parse_model
from harness.models.tokens import tokenizer_and_limit
from harness.store.store import Store, identity_hash

GENERATOR_DEFAULTS = {  # options of a generator; all are part of its identity, as is n
    "dtype": "float32",  # of weights and arithmetic; use bfloat16 on a GPU
    "max_tokens": 256,
    "seed": 0,
    "temperature": 1.0,
    "top_p": 1.0,
}
# With 16 candidates each, a thousand samples: enough to keep an engine busy, and few to lose when a worker is killed.
PROMPTS_PER_BLOCK = 64
# Prompts of a worker's first block that are sampled again, in another batch, to measure effects of rounding.
REPEATED_PROMPTS = 4
MAX_PROMPT_ERROR_RATE = 0.05  # more prompts without candidates mean a problem with the prompts or the model


def parse_generator(name: str) -> LanguageModel:
    """Parse the name of a generator. Raises UserError for a wrong name or option."""
    if name.startswith("openai:"):
        model = parse_endpoint(name, {key: value for key, value in GENERATOR_DEFAULTS.items() if key != "dtype"})
    else:
        model = parse_model(name, GENERATOR_DEFAULTS, inputs=("prompt", "system"))
    if model["max_tokens"] < 1 or model["temperature"] < 0 or not 0 < model["top_p"] <= 1 or model["seed"] < 0:
        raise UserError(
            f"{name!r}: max_tokens is below 1, temperature or seed is below 0, or top_p is not in (0, 1]",
            "temperature=1&top_p=1&max_tokens=256&seed=0",
        )
    return model


def likeliest_writer(judge: str, max_tokens: int) -> str:
    """Return the name of a judge's model as a generator that writes the likeliest tokens."""
    model, _, query = judge.partition("?")
    options = [(name, value) for name, value in parse_qsl(query) if name not in ("max_length", "votes")]
    return f"{model}?{urlencode([*options, ('temperature', 0), ('max_tokens', max_tokens)])}"


def stored_candidates(
    systems: Sequence[str | None], prompts: Sequence[str], name: str, n: int, store: Store | None
) -> list[list[str]]:
    """Return n responses to each prompt with its system prompt, from the store; an empty list where generation failed.

    Raises NotCachedError where some responses are not generated yet, and UserError where more than
    MAX_PROMPT_ERROR_RATE of the prompts failed.
    """
    store = require_store(store, name)
    columns = [pa.array(column, pa.large_string()) for column in (systems, prompts)]
    table = generator_inputs(pa.table(columns, names=["system", "prompt"]))
    found = generate_job(name, n, lambda: [table], store)
    index, ids = found.cached_rows(store).build_index(), id_array(table["id"])
    if count := int(index.is_missing(ids).sum()):
        raise NotCachedError(found, count)
    check_error_rate(index, ids, MAX_PROMPT_ERROR_RATE, "prompts")
    made = index.rows_table(ids)
    out: list[list[str]] = [[] for _ in prompts]
    for place, responses in zip(made["place"].to_pylist(), made["responses"].to_pylist(), strict=True):
        out[place] = responses
    return out


def generate_job(name: str, n: int, batches: Callable[[], Iterable[pa.Table]], store: Store) -> Job:
    """Return the job that samples n responses to each prompt: tables with id, system (may be null) and prompt."""
    model = parse_generator(name)
    if n > 1 and model["temperature"] == 0:
        raise UserError(f"{name!r}: at temperature 0 all {n} samples of a prompt are equal", "temperature=1, or n = 1")
    recipe = EndpointSamples(model, n=n) if model.engine == "openai" else GenerateRecipe(name, n, store)
    return Job("samples", generator_identity(model, n), recipe, batches)


def generator_inputs(table: pa.Table) -> pa.Table:
    """Return the columns id, system and prompt."""
    columns = {name: table[name].cast(pa.large_string()) for name in ("system", "prompt")}
    pairs = zip(*(column.to_pylist() for column in columns.values()), strict=True)
    return pa.table({"id": pa.array([text_id(*pair) for pair in pairs], ID_TYPE)} | columns)


def generator_identity(model: LanguageModel, n: int) -> dict[str, object]:
    """Return everything that determines the samples, as part of a result's key."""
    return model.identity | {"n": n}


@dataclass(frozen=True)
class GenerateRecipe:
    """The recipe of n samples per prompt, which depend on the generator's `name` and on `n` alone.

    store: contains the files of the project's own small model.
    tensor_parallel, rows_per_block, cpus: see `answer.AnswerRecipe`.
    """

    name: str
    n: int
    store: Store
    tensor_parallel: int = 1
    rows_per_block: int = PROMPTS_PER_BLOCK
    cpus: int = 0

    def check(self) -> None:
        from harness.models.inputs import check_prompt_template, open_tokenizer

        model = parse_generator(self.name)
        model.check_available(self.store)
        check_prompt_template(open_tokenizer(model.model_folder(self.store)))

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Tokenise each prompt, int32; empty, undecodable and over-long prompts are errors."""
        model = parse_generator(self.name)
        tokens, limit = tokenizer_and_limit(model, None, self.store)
        room = min(model["max_tokens"], limit // 2)  # a prompt may take half of a short context
        return tokenise_prompts(tokens, table, limit - room, "more than the {} that leave room for a response")

    def start(self) -> Worker:
        from harness.models.engine import open_engine

        model = parse_generator(self.name)
        engine = open_engine(
            model.engine,
            model.model_folder(self.store),
            "sample",
            dtype=model["dtype"],
            tensor_parallel=self.tensor_parallel,
        )
        maker = identity_hash(generator_identity(model, self.n))
        compared: list[list[Sample]] = []

        def generate(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            ids = id_array(ready["id"]).tolist()
            tokens, seeds = token_lists(ready["tokens"]), [prompt_seed(maker, one) for one in ids]
            settings = {option: model[option] for option in ("temperature", "top_p", "max_tokens")}
            samples = engine.sample(tokens, seeds, self.n, **settings)
            again = (
                []
                if compared
                else engine.sample(tokens[:REPEATED_PROMPTS], seeds[:REPEATED_PROMPTS], self.n, **settings)
            )
            compared.extend(again)
            facts = {
                "again": len(again),
                "same": sum(sample_texts(a) == sample_texts(b) for a, b in zip(samples, again, strict=False)),
                "stopped": sum(s.finish_reason == "stop" for row in samples for s in row),
                "samples": len(samples) * self.n,
                "tokens": sum(s.n_tokens for row in samples for s in row),
            }
            empty = np.array([not all(s.text.strip() for s in row) for row in samples], dtype=bool)
            rows = pa.table(
                {
                    "id": ids,
                    "responses": [sample_texts(row) for row in samples],
                    "finish_reason": [[s.finish_reason for s in row] for row in samples],
                    "n_tokens": [[s.n_tokens for s in row] for row in samples],
                    "mean_logprob": [[s.mean_logprob for s in row] for row in samples],
                    "prompt_tokens": [len(prompt) for prompt in tokens],
                },
                schema=SAMPLE_SCHEMA,
            )
            bad = id_array(ready["id"])[empty].tolist()
            return rows.filter(pa.array(~empty)), error_table(bad, ["a sample is empty"] * len(bad)), facts

        return generate


def sample_texts(samples: Sequence[Sample]) -> list[str]:
    """Return the texts of samples."""
    return [sample.text for sample in samples]


def prompt_seed(maker: str, one: bytes) -> int:
    """Return a hashed seed of 62 bits: engines draw sample k from seed + k, so prompts' seeds must lie far apart."""
    return int.from_bytes(hashlib.sha256(maker.encode() + one).digest()[:8], "big") >> 2
