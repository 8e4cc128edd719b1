"""Samples from a causal language model that acts as a policy, with its KL divergence from the model it started from.

A policy is a model `lm`, if wanted under a condition of each row (`policy`, for FiLM or an adapter) or with something
added to its logits (`steer`, for value-augmented sampling). The plain model is the case without either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from harness.method import WRITTEN
from harness.models.base import TOKENS, as_sample
from harness.models.on_transformers import TOKENS_ON_CPU, draw
from harness.models.tokens import batches_by_length, context_length, lengths, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS = 2**27  # of a batch that is measured: half a GB of each distribution of a vocabulary of 150,000

Tensor = torch.Tensor


def write(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    seeds: int | Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    policy: Callable[[np.ndarray], AbstractContextManager] | None = None,
    steer: Callable[[np.ndarray, Tensor, Tensor], Tensor] | None = None,
    reference: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> pa.Table:
    """A response to each prompt, as the chat template renders it: the table harness.method.WRITTEN.

    seeds: row i draws its tokens by the uniform numbers of seeds[i]; one int s stands for a seed of each row's own,
    (s, i). So what else is in a batch changes no draw (it can change a probability by a rounding error), and two
    policies that are given the same seeds draw by the same numbers.
    policy(rows): a context under which `lm` is the policy of these rows (int64[b] of `prompts`, in any order), entered
    anew for each forward pass. steer(rows, hidden float[b, t, d], logits float[b, t, V]): the policy's logits, from
    the model's last hidden states and its logits. reference(ids, mask), int64[b, t] each, padded on the right: the
    reference model's logits float[b, t, V]; without it the reference is `lm` itself, outside `policy` and not steered.

    `kl` sums over the response's places the divergence of the whole next-token distributions, both at temperature 1:
    its mean over samples drawn at temperature 1 is the policy's KL from the reference up to max_tokens, with less
    noise than the log-ratio of what was drawn. ValueError where a prompt is empty or leaves no room in the context.
    """
    device = next(lm.parameters()).device
    limit = context_length(lm.config, tokenizer, None)
    known = {prompt: render(tokenizer, None, prompt)[-max(1, limit - max_tokens) :] for prompt in set(prompts)}
    asked = [known[prompt] for prompt in prompts]
    if not all(asked):
        raise ValueError(f"{sum(not tokens for tokens in asked)} prompts have no tokens")
    keys = [(seeds, row) for row in range(len(prompts))] if isinstance(seeds, (int, np.integer)) else seeds
    ends = ends_of(lm, tokenizer, device)
    plain = policy is None and steer is None and reference is None

    def logits(rows: np.ndarray, ids: Tensor, mask: Tensor, last: int, cache=None):
        """The policy's, float[b, last, V] of the last places (0: all), and the cache."""
        places = (mask.cumsum(1) - 1).clamp(0, limit - 1)[:, -ids.shape[1] :]  # who has ended may wait beyond it
        with nullcontext() if policy is None else policy(rows):
            out = lm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=last > 0,
                output_hidden_states=steer is not None,
                logits_to_keep=last,
            )
        found = out.logits if steer is None else steer(rows, out.hidden_states[-1][:, -last:], out.logits)
        return found, out.past_key_values

    def sample(rows: np.ndarray) -> list[list[int]]:
        """The tokens of a response for each row, the one that ends it too."""
        limits = torch.from_numpy(room[rows]).to(device)
        uniform = torch.zeros(len(rows), int(room[rows].max()), dtype=torch.float64)
        for line, row in zip(uniform, rows.tolist(), strict=True):
            line[: room[row]] = torch.from_numpy(np.random.default_rng(keys[row]).random(room[row]))
        uniform = uniform.to(device)
        said = torch.zeros_like(uniform, dtype=torch.long)
        n_tokens = limits.clone()
        batch = np.arange(len(rows))  # those still in it
        live = torch.ones_like(limits, dtype=torch.bool)  # those of them that go on
        ids, mask = padded([asked[row] for row in rows], device, left=True)
        found, cache = logits(rows, ids, mask, 1)
        for step in range(uniform.shape[1]):
            token = draw(found[:, -1].double(), uniform[batch, step], temperature, 1.0)
            said[batch, step] = token
            ended = torch.isin(token, ends) | (limits[batch] == step + 1)
            n_tokens[batch[(live & ended).cpu().numpy()]] = step + 1
            live &= ~ended
            n_live = int(live.sum())
            if n_live == 0:
                break
            if n_live < 0.75 * len(batch):  # dropping the others copies the cache, which costs about a step
                batch, token, mask = batch[live.cpu().numpy()], token[live], mask[live]
                cache.reorder_cache(live.nonzero()[:, 0])
                live = live[live]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            found, cache = logits(rows[batch], token[:, None], mask, 1, cache)
        return [line[:n] for line, n in zip(said.tolist(), n_tokens.tolist(), strict=True)]

    def measure(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """KL from the reference, and the reference's mean log-probability of a token, float[b] each."""
        ids, mask = padded([asked[row] + said[row] for row in rows], device)
        line = np.repeat(np.arange(len(rows)), n_tokens[rows])
        place = np.concatenate([length[row] + np.arange(n_tokens[row]) for row in rows])  # of the response's tokens
        p = logits(rows, ids, mask, 0)[0][line, place - 1].float().log_softmax(1)
        if plain:
            q = p
        elif reference is None:
            q = lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
        else:
            q = reference(ids, mask)
        if not plain:
            q = q[line, place - 1].float().log_softmax(1)
        divergence = (p.exp() * (p - q)).sum(1).clamp(min=0)  # rounding alone is negative
        likely = q.gather(1, ids[line, place][:, None])[:, 0]
        sums = torch.zeros(2, len(rows), device=device)
        sums.index_add_(1, torch.from_numpy(line).to(device), torch.stack([divergence, likely]))
        kl, total = sums.cpu().numpy()
        return kl, total / n_tokens[rows]

    length = lengths(asked)
    room = np.minimum(max_tokens, limit - length)
    said: list[list[int]] = [[] for _ in prompts]
    columns = np.zeros((2, len(prompts)), dtype=np.float32)
    with torch.no_grad(), evaluating(lm):
        for rows in batches_by_length(length + room, TOKENS):
            for row, tokens in zip(rows.tolist(), sample(rows), strict=True):
                said[row] = tokens
        n_tokens = lengths(said)
        budget = TOKENS if device.type == "cuda" else TOKENS_ON_CPU
        for rows in batches_by_length(length + n_tokens, min(budget, LOGITS // lm.config.get_text_config().vocab_size)):
            columns[:, rows] = measure(rows)
    stopped = [tokens[-1] in ends.tolist() for tokens in said]
    texts = [as_sample(tokenizer, *row, 0.0).text for row in zip(said, stopped, strict=True)]
    return pa.table([pa.array(texts, pa.large_string()), n_tokens, stopped, *columns], names=WRITTEN.names).cast(
        WRITTEN
    )


def ends_of(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Tensor:
    """int64[k]: the tokens that end a response."""
    known = lm.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}
    return torch.tensor(sorted(found), dtype=torch.long, device=device)


def padded(rows: Sequence[Sequence[int]], device: torch.device, left: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens int64[b, longest], and the mask of what is no padding."""
    side = "left" if left else "right"
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.tensor(row) for row in rows], batch_first=True, padding_side=side)
    mask = pad([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


@contextmanager
def evaluating(lm: PreTrainedModel) -> Iterator[None]:
    """Without dropout; afterwards each module is as it was."""
    before = [(module, module.training) for module in lm.modules()]
    lm.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
