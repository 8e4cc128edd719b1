"""Tokenisation of prompts for an engine, with a reason for each prompt that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from harness.inference.cache import error_table, id_array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_lists(column: pa.ChunkedArray) -> Sequence[np.ndarray]:
    """Return int32 arrays, one per row, in copied memory: torch needs writable memory, and Arrow's is not writable."""
    array = column.combine_chunks()
    values, offsets = array.values.to_numpy().copy(), array.offsets.to_numpy()
    return [values[a:b] for a, b in pairwise(offsets)]


def tokenise_prompts(
    tokenizer: PreTrainedTokenizerBase, table: pa.Table, most: int, longer: str
) -> tuple[pa.Table, pa.Table]:
    """Tokenise prompts with their system prompts; return the columns id and tokens, list<int32>, and an error table.

    Empty, undecodable and over-long prompts are errors. most: the largest number of tokens of a prompt. longer: the end
    of the message for a prompt with more tokens, in which {} becomes `most`.
    """
    from harness.models.tokens import render_prompt

    ids, reasons = [], []
    for system, prompt in zip(table["system"].to_pylist(), table["prompt"].to_pylist(), strict=True):
        ids.append(render_prompt(tokenizer, system, prompt) if prompt.strip() else [])
        reasons.append(reason_unusable(prompt, len(ids[-1]), most, longer.format(most)))
    bad = np.array([reason is not None for reason in reasons], dtype=bool)
    ready = pa.table({"id": table["id"], "tokens": pa.array(ids, pa.list_(pa.int32()))})
    why = [reason for reason in reasons if reason is not None]
    return ready.filter(pa.array(~bad)), error_table(id_array(table["id"])[bad].tolist(), why)


def reason_unusable(prompt: str, length: int, most: int, longer: str) -> str | None:
    """Return why a prompt of `length` tokens cannot be used, or None."""
    if not prompt.strip():
        return "the prompt is empty"
    if "\ufffd" in prompt:
        return "the prompt holds bytes that could not be decoded (U+FFFD)"
    return f"the prompt has {length} tokens, {longer}" if length > most else None
