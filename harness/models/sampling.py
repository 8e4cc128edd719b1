"""Sampling from a causal language model in plain PyTorch; each sample is a batch line with its own random numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tensor = torch.Tensor
LEADING_TOKENS = 1000  # sorted for top_p below 1: at temperatures around 1 they hold nearly all of the probability

# forward(prompt, ids, mask, cache) returns the logits float[b, V] after the last token, and the cache.
# prompt int64[b]: the prompt that each line continues. ids int64[b, t]: the tokens to read.
# mask int64[b, all so far]: 1 for every token that is not padding.
Forward = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Any]]


class DrawnSample(NamedTuple):
    """One sample: its tokens, with the end token; whether it ended by itself; and the sum of log-probabilities."""

    tokens: list[int]
    stopped: bool
    logprob: float  # at temperature 1


def sample_batch(
    forward: Forward,
    prompts: tuple[Tensor, Tensor],
    prompt_of: np.ndarray,
    draws: Sequence[np.ndarray],
    ends: Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[DrawnSample]:
    """Draw a sample for each line i: prompt prompt_of[i] is continued by at most len(draws[i]) tokens.

    prompts: ids and mask, int64[prompts, longest] each, padded on the left; each prompt is read once.
    draws[i]: a uniform number for each token of line i. ends: int64[k], the tokens that end a sample.
    """
    ids, mask = prompts
    device = ids.device
    limit = torch.tensor([len(numbers) for numbers in draws], device=device)
    uniform = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(numbers) for numbers in draws], batch_first=True)
    uniform = uniform.to(device)
    tokens, logprobs = torch.zeros_like(uniform, dtype=torch.long), torch.zeros_like(uniform)
    n_tokens = torch.zeros_like(limit)

    lines = torch.arange(len(limit), device=device)  # lines still in the batch
    live = torch.ones_like(lines, dtype=torch.bool)  # lines of the batch that have not ended
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
        if n_live < 0.75 * len(live):  # dropping ended lines copies the cache, which costs about as much as a step
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
    """Draw each row's token, at which the cumulative probability passes the row's uniform number.

    At temperature 0 the most probable token is taken. With top_p below 1, only the most probable tokens that together
    reach top_p are drawn. logits: float64[rows, vocabulary]; uniform: float64[rows].
    """
    if temperature == 0:
        return logits.argmax(1)
    p = (logits / temperature).softmax(1)
    if top_p < 1:
        p = nucleus(p, top_p)
    mass = p.cumsum(1)
    place = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)
    return place.clamp(max=p.shape[1] - 1)[:, 0]


def nucleus(p: Tensor, top_p: float, leading: int = LEADING_TOKENS) -> Tensor:
    """Return the probabilities, float64[rows, vocabulary], with 0 for all but the most probable tokens that reach top_p.

    Of equally probable tokens those with lower numbers come first. Only the `leading` tokens of each row are sorted, unless
    a row needs more of them.
    """
    k = min(leading, p.shape[1])
    place = p.topk(k, dim=1).indices.sort(dim=1).values
    ranked, order = p.gather(1, place).sort(dim=1, descending=True, stable=True)
    beyond = ranked.cumsum(1) - ranked >= top_p
    least = ranked == ranked[:, -1:]  # tokens outside are at most as probable as these
    if k < p.shape[1] and bool((least & ~beyond).any()):
        return nucleus(p, top_p, p.shape[1])
    return torch.zeros_like(p).scatter(1, place.gather(1, order), ranked.masked_fill(beyond, 0))


def end_tokens(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return int64[k]: the tokens that end a response, on the model's device."""
    known = lm.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
    return torch.tensor(sorted(found), dtype=torch.long, device=next(lm.parameters()).device)


def cache_option(lm: Any) -> str:
    """Return the name of the argument that takes a model's keys and values: `cache` since transformers 5.24."""
    base = lm.get_base_model() if hasattr(lm, "get_base_model") else lm  # of a model with adapters
    return "cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values"


def returned_cache(out: Any) -> Any:
    """Return the keys and values in a model's output, under either name."""
    return getattr(out, "cache" if hasattr(out, "cache") else "past_key_values")


def token_positions(mask: Tensor, n: int, context_length: int) -> Tensor:
    """Return int64[b, n]: the positions of the last n tokens, without padding.

    Positions are capped at the context length, which ended lines may exceed while other lines go on.
    """
    return (mask.cumsum(1) - 1).clamp(0, context_length - 1)[:, -n:]


def pad_tokens(
    rows: Sequence[Sequence[int]], device: torch.device, left: bool = False, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Return padded tokens, int64[b, longest], and their mask, int64: 1 where a token is not padding.

    Padding is on the right unless `left` is true.
    """
    side = "left" if left else "right"
    fill = torch.nn.utils.rnn.pad_sequence
    tokens = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ids = fill(tokens, batch_first=True, padding_value=pad, padding_side=side)
    mask = fill([torch.ones_like(row) for row in tokens], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)
