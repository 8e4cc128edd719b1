"""Samples of a causal language model in plain PyTorch: every line draws its tokens by uniform numbers of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tensor = torch.Tensor

# forward(prompt, ids, mask, cache): the model's logits float[b, V] after the last token, and its cache. prompt int64[b]:
# which prompt each line goes on with. ids int64[b, t]: the tokens to read. mask int64[b, all so far]: what is no padding.
Forward = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]


class DrawnSample(NamedTuple):
    """One sample: its tokens, the one that ends it too; whether it ended by itself; and the sum of log-probabilities."""

    tokens: list[int]
    stopped: bool
    logprob: float  # of the untempered model


def sample_batch(
    forward: Forward,
    prompts: tuple[Tensor, Tensor],
    prompt_of: np.ndarray,
    draws: Sequence[np.ndarray],
    ends: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[DrawnSample]:
    """A sample for each line i: of prompt prompt_of[i], its tokens by the uniform numbers draws[i], as far as they go.

    prompts: ids and mask, int64[prompts, longest] each, padded on the left; each prompt is read once. ends: int64[k], the
    tokens that end a sample.
    """
    ids, mask = prompts
    device = ids.device
    limit = torch.tensor([len(numbers) for numbers in draws], device=device)
    uniform = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(numbers) for numbers in draws], batch_first=True)
    uniform = uniform.to(device)
    tokens, logprobs = torch.zeros_like(uniform, dtype=torch.long), torch.zeros_like(uniform)
    n_tokens = torch.zeros_like(limit)

    lines = torch.arange(len(limit), device=device)  # those still in the batch
    live = torch.ones_like(lines, dtype=torch.bool)  # those of them that go on
    prompt = torch.from_numpy(prompt_of).to(device)
    logits, cache = forward(torch.arange(len(ids), device=device), ids, mask, None)
    logits, mask = logits[prompt].double(), mask[prompt]
    cache.reorder_cache(prompt)
    for step in range(uniform.shape[1]):
        token = draw_tokens(logits, uniform[lines, step], temperature, top_p)
        tokens[lines, step] = token
        logprobs[lines, step] = logits.log_softmax(1).gather(1, token[:, None])[:, 0]
        ended = torch.isin(token, ends) | (limit[lines] == step + 1)
        n_tokens[lines[live & ended]] = step + 1
        live &= ~ended
        n_live = int(live.sum())
        if n_live == 0:
            break
        if n_live < 0.75 * len(live):  # dropping the others copies the cache, which costs about a step
            lines, token, mask = lines[live], token[live], mask[live]
            cache.reorder_cache(live.nonzero()[:, 0])
            live = live[live]
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        logits, cache = forward(prompt[lines], token[:, None], mask, cache)
        logits = logits.double()
    stopped = torch.isin(tokens.gather(1, n_tokens[:, None] - 1)[:, 0], ends).tolist()
    return [
        DrawnSample(said[:n].tolist(), stop, float(each[:n].sum()))
        for said, stop, each, n in zip(tokens.cpu(), stopped, logprobs.cpu(), n_tokens.tolist(), strict=True)
    ]


def draw_tokens(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """The token of each row at which the cumulative probability passes its uniform number; the likeliest at 0 degrees.

    logits: float64[rows, vocabulary]; uniform: float64[rows]. Below top_p = 1 only the likeliest tokens count that
    together reach it.
    """
    if temperature == 0:
        return logits.argmax(1)
    p = (logits / temperature).softmax(1)
    if top_p < 1:
        ranked, token = p.sort(dim=1, descending=True, stable=True)
        p = p.scatter(1, token, ranked.masked_fill(ranked.cumsum(1) - ranked >= top_p, 0))
    mass = p.cumsum(1)
    place = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)
    return place.clamp(max=p.shape[1] - 1)[:, 0]


def end_tokens(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """int64[k]: the tokens that end a response, on the model's device."""
    known = lm.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
    return torch.tensor(sorted(found), dtype=torch.long, device=next(lm.parameters()).device)


def token_positions(mask: Tensor, n: int, context_length: int) -> Tensor:
    """int64[b, n]: the places of the last n tokens, counted without padding; who has ended may wait beyond the context."""
    return (mask.cumsum(1) - 1).clamp(0, context_length - 1)[:, -n:]


def pad_tokens(
    rows: Sequence[Sequence[int]], device: torch.device, left: bool = False, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Tokens int64[b, longest], and the int64 mask of what is not padding, which is on the right unless `left`."""
    side = "left" if left else "right"
    fill = torch.nn.utils.rnn.pad_sequence
    tokens = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ids = fill(tokens, batch_first=True, padding_value=pad, padding_side=side)
    mask = fill([torch.ones_like(row) for row in tokens], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)
