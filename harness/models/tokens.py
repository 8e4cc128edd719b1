"""Texts as tokens: tokenizers, chat templates, context lengths, and batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import UserError
from harness.models.names import LanguageModel
from harness.store.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CONTEXT_TOKENS = 2**20  # used where no limit is stated: a tokenizer without a limit reports 1e30


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Open the model's tokenizer without running any code from the folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def render_prompt(tokenizer: PreTrainedTokenizerBase, system: str | None, prompt: str) -> list[int]:
    """Return the tokens of a prompt up to where the model's answer begins.

    The prompt is rendered by the tokenizer's chat template, if any. Without a template, or with one that has no system
    role, the system line is put before the prompt.
    """
    from jinja2 import TemplateError

    alone = f"{system}\n\n{prompt}" if system else prompt
    if tokenizer.chat_template is None:
        return tokenizer(f"{alone}\n")["input_ids"]
    roles = [("system", system), ("user", prompt)] if system else [("user", prompt)]
    try:
        return chat_tokens(tokenizer, roles)
    except TemplateError:
        return chat_tokens(tokenizer, [("user", alone)])


def chat_tokens(tokenizer: PreTrainedTokenizerBase, roles: list[tuple[str, str]]) -> list[int]:
    """Return the tokens of (role, content) messages by the chat template, up to where the answer begins."""
    messages = [{"role": role, "content": content} for role, content in roles]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def context_length(config, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """Return the smallest context length that the model, its tokenizer and the user allow."""
    limits = [
        getattr(config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
        max_length,
    ]
    return int(min(limit for limit in (*limits, MAX_CONTEXT_TOKENS) if limit))


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
    first, second = (tokenizer.encode(word, add_special_tokens=False)[0] for word in words)
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
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # this project reports over-long texts itself
    folder = model.model_folder(store)
    tokens = open_tokenizer(folder)
    return tokens, context_length(AutoConfig.from_pretrained(folder, trust_remote_code=False), tokens, max_length)
