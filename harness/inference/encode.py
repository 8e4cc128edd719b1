"""Encoding of texts as vectors; each distinct text is encoded once, and its vector is kept in the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa

from harness.errors import UserError
from harness.inference.asked import AskedRows
from harness.inference.cache import ID_TYPE, check_error_rate, error_table, id_array, text_id
from harness.inference.jobs import Job, NotCachedError, Worker
from harness.inference.tokens import token_lists, usable_inputs
from harness.inference.words import WORDS_VERSION, visible_tokens
from harness.models.base import Pooling
from harness.models.names import EXAMPLE_NAMES, LanguageModel, has_sentence_modules, parse_model
from harness.models.sentence import SentenceVectors, read_sentence_vectors
from harness.models.tokens import tokenizer_and_limit
from harness.store.store import Store

ENCODER_DEFAULTS = {  # options of a language model that encodes; all are part of its identity
    "dtype": "float32",  # of weights and arithmetic; use bfloat16 on a GPU
    "max_length": 512,  # tokens; longer texts are cut
    "normalize": False,  # scale vectors to length one
    "of": "response",  # or "both": the prompt as the user's turn and the response as the assistant's
    "pooling": "auto",  # mean, last, cls: over the tokens, the last or the first token's vector; or authors: as a folder of
    # sentence-transformers says, with its normalisation, length and prompt. auto: authors for such a folder, else mean.
    # heads: the outputs of a reward model, a sequence-classification model with one head or several
    "storage": "float32",  # or "float16"
    "layer": "last",  # or "15": after that layer; or "10-20": the mean after these layers
    "instruction": "",  # put before every text
    "standardize": False,  # give every dimension the same variance over a task's items; true where layer is not last
    "pca": 0,  # keep so many principal components over a task's items; 0 for all dimensions
}
# Options that came later, and do not change a name at these values
LATER_OPTIONS = {"layer": "last", "instruction": "", "standardize": False, "pca": 0}
OF_TASKS = ("standardize", "pca")  # options that do not change the stored vectors
ENCODER_OPTIONS = {
    "dtype": ("float32", "bfloat16", "float16"),
    "of": ("response", "both"),
    "pooling": ("auto", "authors", "mean", "last", "cls", "heads"),
    "storage": ("float32", "float16"),
}
LAYERS = re.compile(r"last|([1-9]\d*)(?:-([1-9]\d*))?")
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
    if model["layer"] != "last" and "standardize" not in dict(parse_qsl(name.partition("?")[2])):
        model = model.with_options(standardize=True)  # a few huge dimensions drown the others inside a language model
    if model["pooling"] == "heads":
        if model.engine == "vllm":
            raise UserError(
                f"{name!r}: the heads of a reward model are read by transformers alone",
                name.replace("vllm:", "transformers:", 1),
            )
        model = model.with_options(of="both")  # a reward model reads a response after its prompt
    model = replace(model, omitted=LATER_OPTIONS)
    for option, allowed in ENCODER_OPTIONS.items():
        if model[option] not in allowed:
            known = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
            raise UserError(f"{name!r}: {option} is not {known}", f"{option}={allowed[0]}")
    if model["max_length"] < 1:
        raise UserError(f"{name!r}: max_length is below 1", "max_length=512")
    if not (found := LAYERS.fullmatch(model["layer"])) or (found[2] and int(found[2]) < int(found[1])):
        raise UserError(f"{name!r}: layer is not a number, a range or last", "layer=15, or layer=10-20")
    if model["layer"] != "last" and model["pooling"] in ("authors", "heads"):
        raise UserError(f"{name!r}: a layer inside the model is not what its authors pool", "pooling=mean")
    if model["layer"] != "last" and model.engine == "vllm":
        raise UserError(f"{name!r}: vLLM gives the last layer alone", name.replace("vllm:", "transformers:", 1))
    if model["pca"] < 0:
        raise UserError(f"{name!r}: pca is below 0", "pca=128")
    return replace(model, inputs=("conversation",)) if model["of"] == "both" else model


def parse_layers(text: str) -> tuple[int, int] | None:
    """Return the first and the last layer that an encoder's option `layer` names; None for the model's output."""
    first, last = LAYERS.fullmatch(text).groups()  # type: ignore[union-attr]  # parse_encoder has checked it
    return (int(first), int(last or first)) if first else None


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


def asked_rewards(name: str, head: int, prompts: Sequence[str], responses: Sequence[str], store: Store) -> AskedRows:
    """Return the rewards that one head of a reward model gives to responses, with their place in the store."""
    name = reward_model_name(name)
    table = pa.table(
        {"prompt": pa.array(prompts, pa.large_string()), "response": pa.array(responses, pa.large_string())}
    )
    inputs = encoder_inputs(table, name)

    def job(batches: Callable[[], Iterable[pa.Table]]) -> Job:
        return replace(encode_job(name, list, store), batches=batches)  # these rows have their ids already

    return AskedRows(inputs, job, "vector", "texts", store, head)


def reward_model_name(name: str) -> str:
    """Return the name as that of an encoder that reads the heads. Raises UserError for a name that is none."""
    given = dict(parse_qsl(name.partition("?")[2])).get("pooling", "heads")
    if given != "heads":
        raise UserError(f"{name!r}: a reward model has no pooling", "leave out pooling")
    parse_encoding_model(name)
    if "pooling=" in name:
        return name
    return f"{name}{'&' if '?' in name else '?'}pooling=heads"


def canonical_reward_model(name: str) -> str:
    """Return the canonical name of a reward model, which keys of results contain in place of a method's field `model`."""
    return parse_encoding_model(reward_model_name(name)).canonical_name if name else ""


def encode_job(name: str, batches: Callable[[], Iterable[pa.Table]], store: Store) -> Job:
    """Return the job that encodes items: tables with the columns response and, where the encoder reads it, prompt."""
    encoder = parse_encoder(name)
    recipe = encoder if isinstance(encoder, HashingEncoder) else EncodeRecipe(name, store)
    identity = {key: value for key, value in encoder.identity.items() if key not in OF_TASKS}
    return Job("vectors", identity, recipe, lambda: (encoder_inputs(table, name) for table in batches()))


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
        from harness.models.tokens import check_architecture

        model = parse_encoding_model(self.name)
        model.check_available(self.store)
        if model["pooling"] == "heads":
            check_architecture(model.model_folder(self.store), "classify", model.engine)
        if reads_prompt(self.name):
            check_conversation_template(open_tokenizer(model.model_folder(self.store)))

    def prepare(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Tokenise each text, int32; texts that are empty or would lose a part are errors."""
        from harness.models.inputs import conversation_tokens, text_tokens

        model, authors = parse_encoding_model(self.name), self._authors()
        tokenizer, limit = tokenizer_and_limit(model, self._max_length(), self.store)
        responses = table["response"].to_pylist()
        instruction = model["instruction"] or (authors.prompt if authors else "")
        if authors and authors.lower_case:
            responses = [text.lower() for text in responses]
        if reads_prompt(self.name):
            prompts = [f"{instruction}{prompt}" for prompt in table["prompt"].to_pylist()]
            built = conversation_tokens(tokenizer, prompts, responses, limit, model["pooling"] == "heads")
        else:
            built = text_tokens(tokenizer, responses, limit, instruction)
        return usable_inputs(table["id"], built)

    def _authors(self) -> SentenceVectors | None:
        """Return how the authors of a sentence-transformers folder make vectors; None where that is not asked for."""
        model = parse_encoding_model(self.name)
        if model["pooling"] not in ("auto", "authors"):
            return None
        folder = model.model_folder(self.store)
        wanted = model["layer"] == "last" and (model["pooling"] == "authors" or has_sentence_modules(folder))
        return read_sentence_vectors(folder) if wanted else None

    def _max_length(self) -> int:
        lengths = [parse_encoding_model(self.name)["max_length"]]
        if (authors := self._authors()) and authors.max_length:
            lengths.append(authors.max_length)
        return min(lengths)

    def start(self) -> Worker:
        from harness.models.engine import open_engine

        model = parse_encoding_model(self.name)
        engine = open_engine(
            model.engine,
            model.model_folder(self.store),
            "classify" if model["pooling"] == "heads" else "embed",
            dtype=model["dtype"],
            max_length=self._max_length(),
            tensor_parallel=self.tensor_parallel,
            layers=parse_layers(model["layer"]),
        )

        _, limit = tokenizer_and_limit(model, self._max_length(), self.store)
        authors = self._authors()
        pooling = authors.pooling if authors else {"auto": "mean"}.get(model["pooling"], model["pooling"])
        normalize = model["normalize"] or bool(authors and authors.normalize)

        def encode(ready: pa.Table) -> tuple[pa.Table, pa.Table, dict]:
            tokens = token_lists(ready["tokens"])
            found = engine.embed(tokens, cast(Pooling, pooling))
            if normalize:
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
