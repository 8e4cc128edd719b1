"""Answers and samples of models behind a server, asked for by text: no tokenizer and no weights are needed here."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.cache import ID_TYPE, SAMPLE_SCHEMA, error_table, id_array
from harness.inference.jobs import Worker
from harness.models.names import LanguageModel, parse_model
from harness.models.on_endpoint import (
    ENDPOINT_DEFAULTS,
    HOW_ASKED,
    TOP_LOGPROBS,
    Endpoint,
    RefusedError,
    check_base_url,
    log_likelihood_of_end,
    log_odds_of_choice,
    log_odds_of_votes,
)

ROWS_PER_REQUEST_BLOCK = 32  # answers that are lost where a run is killed; each costs money


def parse_endpoint(name: str, defaults: dict[str, object]) -> LanguageModel:
    """Parse the name of a model behind a server; defaults: options beside those of every such model."""
    model = parse_model(name, ENDPOINT_DEFAULTS | defaults, remote=True)
    check_base_url(model["base_url"])
    least = {"parallel": 1, "timeout": 1, "max_requests": 1, "votes": 1, "requests_per_minute": 0}
    for option, smallest in least.items():
        if option in dict(model.options) and model[option] < smallest:
            raise UserError(f"{name!r}: {option} is below {smallest}", f"leave {option} out")
    return replace(model, unrecorded=HOW_ASKED)


@dataclass(frozen=True)
class EndpointRecipe:
    """What these recipes share: inputs are texts, and limits are checked before the first request."""

    columns: ClassVar[tuple[str, ...]] = ("system", "prompt")  # of the inputs; the last one is never empty

    model: LanguageModel
    rows_per_block: int = ROWS_PER_REQUEST_BLOCK
    cpus: int = 1

    def check(self) -> None:
        Endpoint(self.model).check()

    def check_count(self, rows: int) -> None:
        """Say how many requests there will be. Raises UserError where they are more than `max_requests`."""
        requests = rows * self.requests_per_row
        if requests > self.model["max_requests"]:
            raise UserError(
                f"{requests:,} requests to {self.model['base_url']} are more than max_requests={self.model['max_requests']}",
                f"raise it in the model's name if you want to pay for them: max_requests={requests}",
            )
        print(f"asking {self.model.model} at {self.model['base_url']}: up to {requests:,} requests", file=sys.stderr)

    @property
    def requests_per_row(self) -> int:
        """How many requests a row may take, without those that are sent again."""
        raise NotImplementedError

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the inputs; rows whose prompt, or text, is empty are errors."""
        asked = self.columns[-1]
        empty = np.array([not text.strip() for text in table[asked].to_pylist()], dtype=bool)
        bad = id_array(table["id"])[empty].tolist()
        return table.filter(pa.array(~empty)), error_table(bad, [f"the {asked} is empty"] * len(bad))

    def start(self) -> Worker:
        endpoint = Endpoint(self.model)

        def ask_block(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            ids = id_array(ready["id"])
            asked = list(zip(*(ready[column].to_pylist() for column in self.columns), strict=True))
            found = endpoint.ask_all(lambda one: self.ask(endpoint, *one), asked)
            refused = np.array([isinstance(one, RefusedError) for one in found], dtype=bool)
            bad = error_table(ids[refused].tolist(), [str(one) for one in found if isinstance(one, RefusedError)])
            good = [one for one in found if not isinstance(one, RefusedError)]
            return self.rows(ids[~refused].tolist(), good), bad, endpoint.take_facts()

        return ask_block

    def ask(self, endpoint: Endpoint, *inputs: Any) -> Any:
        """Ask for one row, whose inputs are those of `columns`."""
        raise NotImplementedError

    def rows(self, ids: list[bytes], answers: list[Any]) -> pa.Table:
        """Return the rows of answers."""
        raise NotImplementedError


@dataclass(frozen=True)
class EndpointAnswers(EndpointRecipe):
    """Log-odds of two words: from the first token's probabilities, or from `votes` answers where a server returns none."""

    words: tuple[str, str] = ("", "")

    @property
    def requests_per_row(self) -> int:
        return 2  # votes are asked for by a second request

    def ask(self, endpoint: Endpoint, *inputs: Any) -> tuple[float, int]:
        system, prompt = inputs
        (first, *_) = endpoint.chat(
            system, prompt, max_tokens=1, temperature=0, logprobs=True, top_logprobs=TOP_LOGPROBS
        )
        if (known := log_odds_of_choice(first, self.words)) is not None:
            return known, 0
        votes = self.model["votes"]
        texts = [
            choice["message"].get("content") or ""
            for choice in endpoint.chat(system, prompt, max_tokens=8, temperature=1, n=votes)
        ]
        return log_odds_of_votes(texts, self.words), len(texts)

    def rows(self, ids: list[bytes], answers: list[tuple[float, int]]) -> pa.Table:
        """Return the columns id, log_odds and votes: how many answers were counted, 0 where there were probabilities."""
        log_odds, votes = zip(*answers, strict=True) if answers else ((), ())
        columns = {"log_odds": pa.array(log_odds, pa.float32()), "votes": pa.array(votes, pa.int32())}
        return pa.table({"id": pa.array(ids, ID_TYPE)} | columns)


@dataclass(frozen=True)
class EndpointSamples(EndpointRecipe):
    """Samples of each prompt, n by one request where the server gives so many."""

    n: int = 1

    @property
    def requests_per_row(self) -> int:
        return self.n  # of a server that gives one sample at a time

    def ask(self, endpoint: Endpoint, *inputs: Any) -> list[dict]:
        system, prompt = inputs
        options = {name: self.model[name] for name in ("temperature", "top_p", "max_tokens")}
        found: list[dict] = []
        while len(found) < self.n:  # some servers give one at a time
            seed = text_seed(self.model["seed"], system, prompt, len(found))
            more = endpoint.chat(system, prompt, n=self.n - len(found), seed=seed, **options)
            found += more
        if any(not (choice["message"].get("content") or "").strip() for choice in found[: self.n]):
            raise RefusedError("a sample is empty")
        return found[: self.n]

    def rows(self, ids: list[bytes], answers: list[list[dict]]) -> pa.Table:
        return pa.table(
            {
                "id": ids,
                "responses": [[choice["message"]["content"] for choice in row] for row in answers],
                "finish_reason": [[str(choice.get("finish_reason")) for choice in row] for row in answers],
                # a server counts the tokens of all samples together, and returns no probabilities
                "n_tokens": [[None] * len(row) for row in answers],
                "mean_logprob": [[None] * len(row) for row in answers],
                "prompt_tokens": [None] * len(answers),
            },
            schema=SAMPLE_SCHEMA,
        )


@dataclass(frozen=True)
class EndpointLikelihoods(EndpointRecipe):
    """Log-likelihoods of texts, of a server that returns the probabilities of a prompt's own tokens, as vLLM's does."""

    columns = ("beginning", "lead", "text")

    @property
    def requests_per_row(self) -> int:
        return 1

    def ask(self, endpoint: Endpoint, *inputs: Any) -> float:
        *before, text = inputs
        # the token that the server writes shows where the prompt ends
        said = endpoint.complete("".join([*before, text]), echo=True, logprobs=1, max_tokens=1, temperature=0)
        return log_likelihood_of_end(said, len(text))

    def rows(self, ids: list[bytes], answers: list[float]) -> pa.Table:
        return pa.table({"id": pa.array(ids, ID_TYPE), "log_likelihood": pa.array(answers, pa.float64())})


def text_seed(seed: int, system: str | None, prompt: str, drawn: int) -> int:
    """Return a hashed seed of 31 bits for a prompt of which so many samples are drawn already."""
    return int.from_bytes(hashlib.sha256(repr((seed, system, prompt, drawn)).encode()).digest()[:4], "big") >> 1
