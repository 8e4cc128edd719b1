"""Encoding of texts as vectors; each distinct text is encoded once, and its vector is kept in the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.cache import ID_TYPE, check_error_rate, error_table, id_array, text_id
from harness.inference.jobs import Job, NotCachedError, Worker
from harness.inference.tokens import token_lists, usable_inputs
from harness.inference.words import WORDS_VERSION, visible_tokens
from harness.models.names import EXAMPLE_NAMES, LanguageModel, parse_model
from harness.models.tokens import tokenizer_and_limit
from harness.store.store import Store

ENCODER_DEFAULTS = {  # options of a language model that encodes; all are part of its identity
    "dtype": "float32",  # of weights and arithmetic; use bfloat16 on a GPU
    "max_length": 512,  # tokens; longer texts are cut
    "normalize": False,  # scale vectors to length one
    "of": "response",  # or "both": the prompt as the user's turn and the response as the assistant's
    "pooling": "mean",  # or "last": the last token's vector
    "storage": "float32",  # or "float16"
}
ENCODER_OPTIONS = {
    "dtype": ("float32", "bfloat16", "float16"),
    "of": ("response", "both"),
    "pooling": ("mean", "last"),
    "storage": ("float32", "float16"),
}
HASHING_NAME = re.compile(r"hashing-([1-9]\d*)")
MAX_HASHING_DIM = 2**16  # a block of texts then takes 4 GB
TEXTS_PER_BLOCK = 2048  # half a minute for a 7B model on one GPU, and 500 blocks for a million texts
HASHED_TEXTS_PER_BLOCK = 16384  # the hashing encoder does these in a second


def parse_encoder(name: str) -> LanguageModel | HashingEncoder:
    """Parse the name of an encoder: hashing-DIM, or a language model. Raises UserError for any other name."""
    if found := HASHING_NAME.fullmatch(name):
        if int(found[1]) > MAX_HASHING_DIM:
            raise UserError(f"{name!r} has more than {MAX_HASHING_DIM} dimensions", "hashing-1024")
        return HashingEncoder(int(found[1]))
    if ":" not in name:
        raise UserError(
            f"there is no text encoder {name!r}",
            f'for example "hashing-1024", or a language model: {EXAMPLE_NAMES}; for a task also "tfidf-svd-128"',
        )
    model = parse_model(name, ENCODER_DEFAULTS)
    for option, allowed in ENCODER_OPTIONS.items():
        if model[option] not in allowed:
            raise UserError(f"{name!r}: {option} is not {' or '.join(allowed)}", f"{option}={allowed[0]}")
    if model["max_length"] < 1:
        raise UserError(f"{name!r}: max_length is below 1", "max_length=512")
    return replace(model, inputs=("conversation",)) if model["of"] == "both" else model


def parse_encoding_model(name: str) -> LanguageModel:
    """Parse the name of a language model that encodes. Raises UserError for any other encoder."""
    model = parse_encoder(name)
    if isinstance(model, HashingEncoder):
        raise UserError(f"{name!r} is not a language model", f"for example {EXAMPLE_NAMES}")
    return model


def stored_vectors(table: pa.Table, name: str, store: Store) -> np.ndarray:
    """Return float[n, dim]: vectors of items (columns prompt, response), in order, from the store.

    Raises NotCachedError where some items are not encoded yet, and UserError where a text cannot be encoded, such as an
    empty one.
    """
    found = encode_job(name, lambda: [table], store)
    index, ids = found.cached_rows(store).build_index(), id_array(encoder_inputs(table, name)["id"])
    if count := int(index.is_missing(ids).sum()):
        raise NotCachedError(found, count)
    check_error_rate(index, ids, 0.0, "texts")
    return index.vectors(ids)


def encode_job(name: str, batches: Callable[[], Iterable[pa.Table]], store: Store) -> Job:
    """Return the job that encodes items: tables with the columns response and, where the encoder reads it, prompt."""
    encoder = parse_encoder(name)
    recipe = encoder if isinstance(encoder, HashingEncoder) else EncodeRecipe(name, store)
    return Job("vectors", encoder.identity, recipe, lambda: (encoder_inputs(table, name) for table in batches()))


def reads_prompt(name: str) -> bool:
    """Return whether the encoder reads the prompt too."""
    encoder = parse_encoder(name)
    return not isinstance(encoder, HashingEncoder) and encoder["of"] == "both"


def encoder_inputs(table: pa.Table, name: str) -> pa.Table:
    """Return the columns id, response and, where the encoder reads it, prompt."""
    read = ("response", "prompt") if reads_prompt(name) else ("response",)
    columns = {column: table[column].cast(pa.large_string()) for column in read}
    ids = [text_id(*parts) for parts in zip(*(column.to_pylist() for column in columns.values()), strict=True)]
    return pa.table({"id": pa.array(ids, ID_TYPE)} | columns)


@dataclass(frozen=True)
class EncodeRecipe:
    """The recipe of a language model's vectors, which depend on the encoder's `name` alone.

    store: contains the files of the project's own small model.
    tensor_parallel, rows_per_block, cpus: see `answer.AnswerRecipe`.
    """

    name: str
    store: Store
    tensor_parallel: int = 1
    rows_per_block: int = TEXTS_PER_BLOCK
    cpus: int = 0

    def check(self) -> None:
        from harness.models.inputs import check_conversation_template, open_tokenizer

        model = parse_encoding_model(self.name)
        model.check_available(self.store)
        if reads_prompt(self.name):
            check_conversation_template(open_tokenizer(model.model_folder(self.store)))

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Tokenise each text, int32; texts that are empty or would lose a part are errors."""
        from harness.models.inputs import conversation_tokens, text_tokens

        model = parse_encoding_model(self.name)
        tokenizer, limit = tokenizer_and_limit(model, model["max_length"], self.store)
        responses = table["response"].to_pylist()
        if reads_prompt(self.name):
            built = conversation_tokens(tokenizer, table["prompt"].to_pylist(), responses, limit)
        else:
            built = text_tokens(tokenizer, responses, limit)
        return usable_inputs(table["id"], built)

    def start(self) -> Worker:
        from harness.models.engine import open_engine

        model = parse_encoding_model(self.name)
        engine = open_engine(
            model.engine,
            model.model_folder(self.store),
            "embed",
            dtype=model["dtype"],
            max_length=model["max_length"],
            tensor_parallel=self.tensor_parallel,
        )

        _, limit = tokenizer_and_limit(model, model["max_length"], self.store)

        def encode(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            tokens = token_lists(ready["tokens"])
            found = engine.embed(tokens, model["pooling"])
            if model["normalize"]:
                found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            rows, wrong, _ = vector_rows(id_array(ready["id"]), found.astype(model["storage"]))
            return rows, wrong, {"cut": sum(len(row) >= limit for row in tokens)}

        return encode


@dataclass(frozen=True)
class HashingEncoder:
    """An encoder that counts words and marks in `dim` signed columns by a hash of each (Weinberger et al. 2009).

    The encoder sees the tokens of `words.visible_tokens`, which include case, punctuation, emoji and line breaks, but not
    their order. The encoder needs no model and no fitting. A token counts 1 + log(count). Use the encoder for millions
    of texts; up to some ten thousand texts, `tfidf-svd-DIM` is more informative.
    """

    dim: int
    rows_per_block: int = HASHED_TEXTS_PER_BLOCK
    cpus: int = 1

    @property
    def identity(self) -> dict[str, object]:
        """Everything that determines the vectors, as part of a result's key."""
        return {"engine": "hashing", "dim": self.dim, "recipe": WORDS_VERSION}  # see models.names.parse_model

    def check(self) -> None:
        """Do nothing: the encoder always runs."""

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        empty = np.array([not text.strip() for text in table["response"].to_pylist()], dtype=bool)
        bad = id_array(table["id"])[empty].tolist()
        return table.filter(pa.array(~empty)), error_table(bad, ["the text is empty"] * len(bad))

    def start(self) -> Worker:
        def encode(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            return vector_rows(id_array(ready["id"]), self.vectors(ready["response"]))

        return encode

    def vectors(self, texts: pa.ChunkedArray) -> np.ndarray:
        """Return float32[n, dim] of n texts, counted block by block."""
        from sklearn.feature_extraction.text import HashingVectorizer

        counter = HashingVectorizer(analyzer=visible_tokens, n_features=self.dim, norm=None)
        found = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), HASHED_TEXTS_PER_BLOCK):
            counts = counter.transform(texts.slice(start, HASHED_TEXTS_PER_BLOCK).to_pylist())
            counts.data = np.sign(counts.data) * (1 + np.log(np.maximum(np.abs(counts.data), 1)))
            found[start : start + counts.shape[0]] = counts.toarray()
        return found


def vector_rows(ids: np.ndarray, found: np.ndarray) -> tuple[pa.Table, pa.Table, dict]:
    """Return the columns id and vector, an error table, and no counts; a vector that is not finite is an error."""
    good = np.isfinite(found).all(axis=1)
    flat = pa.array(np.ascontiguousarray(found[good]).ravel())
    rows = pa.table(
        {
            "id": pa.array(ids[good].tolist(), ID_TYPE),
            "vector": pa.FixedSizeListArray.from_arrays(flat, found.shape[1]),
        }
    )
    return rows, error_table(ids[~good].tolist(), ["the vector is not finite"] * int((~good).sum())), {}
