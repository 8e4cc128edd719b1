"""Texts -> vectors: an encoder named in one string, each distinct text encoded once and kept in the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from harness.errors import Mistake
from harness.inference.cache import ID, errors, ids_of, refuse_errors, text_id
from harness.inference.jobs import Job, Lacking, Worker
from harness.inference.tokens import as_lists
from harness.models.names import EXAMPLE, LanguageModel, parse_model
from harness.models.tokens import reader
from harness.store.store import Store

DEFAULTS = {  # options of a language model that encodes; all are part of its identity
    "dtype": "float32",  # of weights and arithmetic; bfloat16 on a GPU
    "max_length": 512,  # tokens; what is longer is cut
    "normalize": False,  # to length one
    "of": "response",  # or "both": the prompt as the user's turn, the response as the assistant's
    "pooling": "mean",  # or "last": the last token's
    "storage": "float32",  # or "float16"
}
CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "of": ("response", "both"),
    "pooling": ("mean", "last"),
    "storage": ("float32", "float16"),
}
HASHING = re.compile(r"hashing-([1-9]\d*)")
WIDEST = 2**16  # dimensions of the hashing encoder: a block of texts is then 4 GB
TEXTS = 2048  # of a block: half a minute of a 7B model on one GPU, and a store of 500 shards for a million texts
WORDS = 16384  # of a block of the hashing encoder, which does them in a second


def make_encoder(name: str) -> LanguageModel | Hashing:
    """The encoder that `name` names: hashing-DIM, or a language model. Raises Mistake for any other."""
    if found := HASHING.fullmatch(name):
        if int(found[1]) > WIDEST:
            raise Mistake(f"{name!r} has more than {WIDEST} dimensions", "hashing-1024")
        return Hashing(int(found[1]))
    if ":" not in name:
        raise Mistake(
            f"there is no text encoder {name!r}",
            f'for example "hashing-1024", or a language model: {EXAMPLE}; for a task also "tfidf-svd-128"',
        )
    model = parse_model(name, DEFAULTS)
    for option, allowed in CHOICES.items():
        if model[option] not in allowed:
            raise Mistake(f"{name!r}: {option} is not {' or '.join(allowed)}", f"{option}={allowed[0]}")
    if model["max_length"] < 1:
        raise Mistake(f"{name!r}: max_length is below 1", "max_length=512")
    return model


def encoding_model(name: str) -> LanguageModel:
    """The language model that encodes. Raises Mistake where `name` names another encoder."""
    model = make_encoder(name)
    if isinstance(model, Hashing):
        raise Mistake(f"{name!r} is no language model", f"for example {EXAMPLE}")
    return model


def vectors(table: pa.Table, name: str, store: Store) -> np.ndarray:
    """float[n, dim] of items (columns prompt, response), in order. Raises Lacking where some are not encoded yet.

    Also Mistake where a text cannot be encoded, such as an empty one.
    """
    found = job(name, lambda: [table], store)
    index, ids = found.rows(store).index(), ids_of(inputs(table, name)["id"])
    if count := int(index.lacks(ids).sum()):
        raise Lacking(found, count)
    refuse_errors(index, ids, 0.0, "texts")
    return index.vectors(ids)


def job(name: str, batches: Callable[[], Iterable[pa.Table]], store: Store) -> Job:
    """What encodes items: tables with the columns response and, where the encoder reads it, prompt."""
    encoder = make_encoder(name)
    recipe = encoder if isinstance(encoder, Hashing) else Encoding(name, store)
    return Job("vectors", encoder.identity, recipe, lambda: (inputs(table, name) for table in batches()))


def reads_prompt(name: str) -> bool:
    """Whether the encoder reads the prompt too."""
    encoder = make_encoder(name)
    return not isinstance(encoder, Hashing) and encoder["of"] == "both"


def inputs(table: pa.Table, name: str) -> pa.Table:
    """Columns id, response, and prompt where the encoder reads it."""
    read = ("response", "prompt") if reads_prompt(name) else ("response",)
    columns = {column: table[column].cast(pa.large_string()) for column in read}
    ids = [text_id(*parts) for parts in zip(*(column.to_pylist() for column in columns.values()), strict=True)]
    return pa.table({"id": pa.array(ids, ID)} | columns)


@dataclass(frozen=True)
class Encoding:
    """A language model's vectors of texts, as a recipe. name: the encoder's; it says everything but where to run.

    store: where the project's own small model lies.
    """

    name: str
    store: Store
    tensor_parallel: int = 1
    block: int = TEXTS
    cpus: int = 0

    def check(self) -> None:
        encoding_model(self.name).check(self.store)

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Tokens int32 of each text; empty ones are errors."""
        model = encoding_model(self.name)
        tokens, limit = reader(model, model["max_length"], self.store)
        both = reads_prompt(self.name)
        texts = rendered(tokens, table) if both else table["response"].to_pylist()
        ids = tokens(texts, truncation=True, max_length=limit, add_special_tokens=not both)["input_ids"]
        empty = np.array([not text.strip() or not row for text, row in zip(texts, ids, strict=True)], dtype=bool)
        if unread := [text for text, row in zip(texts, ids, strict=True) if text.strip() and not row]:
            raise Mistake(f"{self.name}: its tokenizer reads nothing of {unread[0][:80]!r}", "is the tokenizer whole?")
        ready = pa.table({"id": table["id"], "tokens": pa.array(ids, pa.list_(pa.int32()))})
        bad = ids_of(table["id"])[empty]
        return ready.filter(pa.array(~empty)), errors(bad, ["the text is empty"] * len(bad))

    def start(self) -> Worker:
        from harness.models.engine import open_engine

        model = encoding_model(self.name)
        engine = open_engine(
            model.engine,
            model.folder(self.store),
            "embed",
            dtype=model["dtype"],
            max_length=model["max_length"],
            tensor_parallel=self.tensor_parallel,
        )

        def encode(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            found = engine.embed(as_lists(ready["tokens"]), model["pooling"])
            if model["normalize"]:
                found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            return as_rows(ids_of(ready["id"]), found.astype(model["storage"]))

        return encode


@dataclass(frozen=True)
class Hashing:
    """Counts of words, by a hash of each word, in `dim` signed columns (Weinberger et al. 2009): no model, no fitting.

    Repeats count by 1 + log(count). Made for texts by the million; up to some ten thousand, `tfidf-svd-DIM` knows more.
    """

    dim: int
    block: int = WORDS
    cpus: int = 1

    @property
    def identity(self) -> dict[str, object]:
        return {"engine": "hashing", "dim": self.dim, "recipe": 1}  # see models.names.parse_model

    def check(self) -> None:
        """It needs nothing."""

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        empty = np.array([not text.strip() for text in table["response"].to_pylist()], dtype=bool)
        bad = ids_of(table["id"])[empty].tolist()
        return table.filter(pa.array(~empty)), errors(bad, ["the text is empty"] * len(bad))

    def start(self) -> Worker:
        from sklearn.feature_extraction.text import HashingVectorizer

        from harness.inference.encode import WORD

        counter = HashingVectorizer(token_pattern=WORD, n_features=self.dim, norm=None)

        def encode(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            counts = counter.transform(ready["response"].to_pylist())
            counts.data = np.sign(counts.data) * (1 + np.log(np.maximum(np.abs(counts.data), 1)))
            return as_rows(ids_of(ready["id"]), counts.toarray().astype(np.float32))

        return encode


def rendered(tokenizer, table: pa.Table) -> list[str]:
    """Prompt and response as one text: by the tokenizer's chat template where it has one, else one after the other."""
    pairs = zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True)
    if tokenizer.chat_template is None:
        return [f"{prompt}\n\n{response}" for prompt, response in pairs]
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}] for prompt, response in pairs
    ]
    return tokenizer.apply_chat_template(turns, tokenize=False)


def as_rows(ids: np.ndarray, found: np.ndarray) -> tuple[pa.Table, pa.Table, dict]:
    """Columns id and vector; a vector that is not finite is an error."""
    good = np.isfinite(found).all(axis=1)
    flat = pa.array(np.ascontiguousarray(found[good]).ravel())
    rows = pa.table(
        {
            "id": pa.array(ids[good].tolist(), ID),
            "vector": pa.FixedSizeListArray.from_arrays(flat, found.shape[1]),
        }
    )
    return rows, errors(ids[~good].tolist(), ["the vector is not finite"] * int((~good).sum())), {}


WORD = r"\w+(?:'\w+)?|[!?]"  # words, contractions as one, and the two marks that carry tone
