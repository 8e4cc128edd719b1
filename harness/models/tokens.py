"""Texts as tokens: tokenizers, chat templates, context lengths, and batches of like lengths."""

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
MAX_CONTEXT_TOKENS = 2**20  # tokens of a context where nobody says: a tokenizer without a limit has 1e30


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; it runs none of the folder's code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def render_prompt(tokenizer: PreTrainedTokenizerBase, system: str | None, prompt: str) -> list[int]:
    """Tokens of a prompt up to where the model's answer begins.

    By the tokenizer's chat template, where it has one; a template that knows no system role gets the system line at
    the head of the prompt, as does plain text.
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
    messages = [{"role": role, "content": content} for role, content in roles]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def context_length(config, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """The smallest of what the model, its tokenizer and the user allow."""
    limits = [
        getattr(config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
        max_length,
    ]
    return int(min(limit for limit in (*limits, MAX_CONTEXT_TOKENS) if limit))


def token_counts(prompts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """int64[n]"""
    return np.array([len(prompt) for prompt in prompts], dtype=np.int64)


def batches_by_length(length: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Rows of like lengths, longest first: each time as many as fit `tokens` once padded, and at least one."""
    order = np.argsort(-length, kind="stable")
    while len(order):
        batch, order = np.split(order, [max(1, tokens // length[order[0]])])
        yield batch


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: tuple[str, str]) -> tuple[int, int]:
    """The token each word begins with."""
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
    """Its tokenizer, and how many tokens it takes; kept, for loading them takes longer than a block does."""
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # that a text is too long is ours to tell
    folder = model.model_folder(store)
    tokens = open_tokenizer(folder)
    return tokens, context_length(AutoConfig.from_pretrained(folder, trust_remote_code=False), tokens, max_length)
