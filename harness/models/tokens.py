"""Numbers of tokens: context lengths, batches of similar lengths, and the tokens that begin two answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import UserError
from harness.models.inputs import open_tokenizer
from harness.models.loading import loading_errors_as_user_errors
from harness.models.names import LanguageModel
from harness.store.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CONTEXT_TOKENS = 2**20  # used where no limit is stated: a tokenizer without a limit reports 1e30
# Types of models that number positions from `pad_token_id + 1`, as RoBERTa does: so many positions hold no token.
OFFSET_POSITIONS = {
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def context_length(config, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Return the smallest context length that the model, its tokenizer and the user allow."""
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions and text_config.model_type in OFFSET_POSITIONS:
        positions -= text_config.pad_token_id + 1
    limits = [positions, tokenizer.model_max_length, max_length]
    return int(min(limit for limit in (*limits, MAX_CONTEXT_TOKENS) if limit))


def model_config(folder: Path):
    """Return the transformers configuration of the language model in a folder."""
    from transformers import AutoConfig

    with loading_errors_as_user_errors(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def check_architecture(folder: Path, use: str, engine: str) -> None:
    """Raise UserError where the model in a folder cannot be used so: an encoder-decoder model only encodes."""
    if use == "classify" and not any(
        "ForSequenceClassification" in name for name in model_config(folder).architectures or []
    ):
        raise UserError(
            f"{folder} holds no reward model: its architecture is {', '.join(model_config(folder).architectures or ['unknown'])}, "
            "and not one for sequence classification",
            "name a reward model, or use pooling=last for the states of a model without heads",
        )
    if model_config(folder).is_encoder_decoder and (use != "embed" or engine == "vllm"):
        raise UserError(
            f"{folder} holds an encoder-decoder model ({model_config(folder).model_type}), whose encoder can encode texts "
            "with the engine transformers; it can neither write, answer nor be trained here",
            f"--encoder transformers:{folder}, or name a model that only decodes",
        )


def token_counts(prompts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Return int64[n]: the number of tokens of each prompt."""
    return np.array([len(prompt) for prompt in prompts], dtype=np.int64)


def batches_by_length(length: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Yield batches of rows of similar lengths, longest first; `tokens` limits a batch of several rows with padding."""
    order = np.argsort(-length, kind="stable")
    while len(order):
        batch, order = np.split(order, [max(1, tokens // length[order[0]])])
        yield batch


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: tuple[str, str]) -> tuple[int, int]:
    """Return the first token of each word. Raises UserError where both begin with the same token."""
    begun = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    if not all(begun):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} has no token for {words[begun.index([])]!r}",
            "use another model, or choose other answers",
        )
    first, second = begun[0][0], begun[1][0]
    if first == second:
        raise UserError(
            f"the answers {words[0]!r} and {words[1]!r} begin with the same token of this model",
            "choose answers that differ in their first letters, such as A and B",
        )
    return first, second


@lru_cache(1)
def tokenizer_and_limit(
    model: LanguageModel, max_length: int | None, store: Store
) -> tuple[PreTrainedTokenizerBase, int]:
    """Return the model's tokenizer and its context length; cached, since loading takes longer than a block of work."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # this project reports over-long texts itself
    folder = model.model_folder(store)
    tokens = open_tokenizer(folder)
    return tokens, context_length(model_config(folder), tokens, max_length)
