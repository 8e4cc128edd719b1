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

    from harness.models.inputs import BuiltInputs


def token_lists(column: pa.ChunkedArray) -> Sequence[np.ndarray]:
    """Return int32 arrays, one per row, in copied memory: torch needs writable memory, and Arrow's is not writable."""
    array = column.combine_chunks()
    values, offsets = array.values.to_numpy().copy(), array.offsets.to_numpy()
    return [values[a:b] for a, b in pairwise(offsets)]


def tokenise_prompts(
    tokenizer: PreTrainedTokenizerBase, table: pa.Table, most: int, longer: str
) -> tuple[pa.Table, pa.Table]:
    """Tokenise prompts with their system prompts; return the columns id and tokens, list<int32>, and an error table.

    Prompts that are empty, undecodable or over-long, or would lose a part, are errors. most: the largest number of tokens of a prompt. longer: the end
    of the message for a prompt with more tokens, in which {} becomes `most`.
    """
    from harness.models.inputs import BuiltInputs, LostTextError, render_prompt

    built = BuiltInputs([], [])
    for system, prompt in zip(table["system"].to_pylist(), table["prompt"].to_pylist(), strict=True):
        tokens, reason = [], None
        if not prompt.strip():
            reason = "the prompt is empty"
        elif "\ufffd" in prompt:
            reason = "the prompt holds characters that could not be decoded (U+FFFD)"
        else:
            try:
                tokens = render_prompt(tokenizer, system, prompt)
            except LostTextError as error:
                reason = error.message
        if len(tokens) > most:
            reason = f"the prompt has {len(tokens)} tokens, {longer.format(most)}"
        built.tokens.append(tokens)
        built.reasons.append(reason)
    return usable_inputs(table["id"], built)


def usable_inputs(ids: pa.ChunkedArray, built: BuiltInputs) -> tuple[pa.Table, pa.Table]:
    """Return the columns id and tokens, list<int32>, of the inputs that can be used, and an error table of the others."""
    usable = np.array([reason is None for reason in built.reasons], dtype=bool)
    ready = pa.table({"id": ids, "tokens": pa.array(built.tokens, pa.list_(pa.int32()))})
    why = [reason for reason in built.reasons if reason is not None]
    return ready.filter(pa.array(usable)), error_table(id_array(ids)[~usable].tolist(), why)
