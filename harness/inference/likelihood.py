"""Log-likelihoods of texts under a language model, each text after a beginning; the store keeps each one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from harness.inference.answer import parse_local_judge
from harness.inference.asked import AskedRows, number_rows
from harness.inference.cache import ID_TYPE, error_table, id_array, text_id
from harness.inference.endpoint import EndpointLikelihoods, parse_endpoint
from harness.inference.jobs import Job, Worker
from harness.inference.tokens import token_lists
from harness.models.names import LanguageModel
from harness.models.tokens import tokenizer_and_limit
from harness.store.store import Store

CONTINUATIONS_PER_BLOCK = 256  # of some thirty tokens each, after beginnings that are read once: a quarter of a minute


def parse_reader(name: str) -> LanguageModel:
    """Parse the name of a model that reads texts. Raises UserError for a wrong name or option."""
    return parse_endpoint(name, {}) if name.startswith("openai:") else parse_local_judge(name)


def canonical_reader(name: str) -> str:
    """Return the canonical name of such a model, which keys of results contain in place of a method's field `model`."""
    return parse_reader(name).canonical_name


def asked_likelihoods(
    name: str, beginnings: Sequence[str], leads: Sequence[str], texts: Sequence[str], store: Store
) -> AskedRows:
    """Return the rows of log p(texts[i] | beginnings[i], leads[i]) with their place in the store."""

    def job(batches: Callable[[], Iterable[pa.Table]]) -> Job:
        model = parse_reader(name)
        recipe = EndpointLikelihoods(model) if model.engine == "openai" else LikelihoodRecipe(name, store)
        return Job("likelihoods", model.identity | {"of": "log-likelihood"}, recipe, batches)

    return AskedRows(continuation_table(beginnings, leads, texts), job, "log_likelihood", "texts", store)


def continuation_table(beginnings: Sequence[str], leads: Sequence[str], texts: Sequence[str]) -> pa.Table:
    """Return a table with the columns id, beginning, lead and text, a row per text."""
    ids = [text_id(*parts) for parts in zip(beginnings, leads, texts, strict=True)]
    columns = [pa.array(ids, ID_TYPE), *(pa.array(list(c), pa.large_string()) for c in (beginnings, leads, texts))]
    return pa.table(columns, names=["id", "beginning", "lead", "text"])


@dataclass(frozen=True)
class LikelihoodRecipe:
    """The recipe of log-likelihoods, which depend on the model's `name` alone; fields as in `answer.AnswerRecipe`.

    Beginning, lead and text are tokenised one by one, as plain text without a chat template, so that the same tokens
    of a text are counted whatever stands before it.
    """

    name: str
    store: Store
    tensor_parallel: int = 1
    rows_per_block: int = CONTINUATIONS_PER_BLOCK
    cpus: int = 0

    def check(self) -> None:
        parse_local_judge(self.name).check_available(self.store)

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Tokenise the parts (int32). Texts without tokens, and inputs longer than the model's context, become errors."""
        from harness.models.inputs import without_end

        model = parse_local_judge(self.name)
        tokenizer, limit = tokenizer_and_limit(model, model["max_length"], self.store)
        start = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        known: dict[str, list[int]] = {}
        for text in table["beginning"].unique().to_pylist():  # a person's choices come with each text
            tokens = without_end(tokenizer, text) if text else []
            known[text] = tokens or ([] if start is None else [start])
        leads, texts = (
            tokenizer(table[name].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
            for name in ("lead", "text")
        )
        begun = [known[text] for text in table["beginning"].to_pylist()]
        reasons = []
        for first, lead, text in zip(begun, leads, texts, strict=True):
            n = len(first) + len(lead) + len(text)
            reason = None if text and first else "the text, or what stands before it, has no token"
            reasons.append(f"{n} tokens, more than the {limit} that the model reads" if n > limit else reason)
        rest = [lead + text for lead, text in zip(leads, texts, strict=True)]
        lists = pa.list_(pa.int32())
        ready = pa.table(
            {
                "id": table["id"],
                "beginning": pa.array(begun, lists),
                "rest": pa.array(rest, lists),
                "scored": pa.array([len(text) for text in texts], pa.int32()),
            }
        )
        good = np.array([reason is None for reason in reasons], dtype=bool)
        bad = error_table(id_array(table["id"])[~good].tolist(), [reason for reason in reasons if reason])
        return ready.filter(pa.array(good)), bad

    def start(self) -> Worker:
        from harness.models.engine import open_engine

        model = parse_local_judge(self.name)
        engine = open_engine(
            model.engine,
            model.model_folder(self.store),
            "answer",
            dtype=model["dtype"],
            max_length=model["max_length"],
            tensor_parallel=self.tensor_parallel,
        )

        def read(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            ids, rest = id_array(ready["id"]), token_lists(ready["rest"])
            found = (
                engine.log_likelihood(token_lists(ready["beginning"]), rest, ready["scored"].to_numpy())
                if len(ids)
                else np.empty(0)
            )
            return *number_rows(ids, found, "log_likelihood"), {"tokens": sum(map(len, rest))}

        return read
