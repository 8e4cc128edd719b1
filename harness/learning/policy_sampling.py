"""Samples from a causal language model used as a policy, with its KL divergence from the reference model.

A policy is a model `lm` that may be changed in two ways: by a context manager around each forward pass (`policy`, for
FiLM or an adapter), or by adjusting its logits (`adjust_logits`, for value-augmented sampling). With neither, the
policy is the plain model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from harness.method import GENERATED_SCHEMA
from harness.models.base import MAX_BATCH_TOKENS, make_sample
from harness.models.inputs import render_prompt
from harness.models.on_transformers import MAX_CPU_BATCH_TOKENS
from harness.models.sampling import (
    DrawnSample,
    cache_option,
    end_tokens,
    pad_tokens,
    returned_cache,
    sample_batch,
    token_positions,
)
from harness.models.tokens import batches_by_length, context_length, token_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_MEASURED_LOGITS = 2**27  # logits per batch in the measurement of KL: half a GB of float32 per distribution

Tensor = torch.Tensor
Condition = Callable[[np.ndarray], AbstractContextManager]
AdjustLogits = Callable[[np.ndarray, Tensor, Tensor], Tensor]
Reference = Callable[[Tensor, Tensor], Tensor]


def write_responses(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    seeds: int | Sequence[int],
    *,
    max_tokens: int,
    policy: Condition | None = None,
    adjust_logits: AdjustLogits | None = None,
    reference: Reference | None = None,
) -> pa.Table:
    """Sample a response to each prompt, rendered by the chat template; return a table with GENERATED_SCHEMA.

    Tokens are drawn at temperature 1. `kl` sums the divergence of the whole next-token distributions over the
    response's tokens. Its mean over samples is the policy's KL from the reference up to max_tokens, with less noise
    than the log-ratio of the drawn tokens. A prompt that leaves no room for max_tokens in the model's context loses its
    beginning. Raises ValueError where a prompt has no tokens.
    seeds: the tokens of row i are drawn with uniform numbers from a generator seeded by seeds[i]; an int s stands for
    the seed (s, i) in row i. So the numbers of a row do not depend on the other rows of its batch (which can still
    change a probability by a rounding error), and two policies with the same seeds use the same numbers.
    policy(rows): returns a context manager within which `lm` is the policy of these rows (int64[b], indices into
    `prompts` in any order). Each forward pass enters a new one.
    adjust_logits(rows, hidden float[b, t, d], logits float[b, t, V]): the policy's logits, computed from the model's
    last hidden states and its logits.
    reference(ids, mask): the reference model's logits float[b, t, V] for int64[b, t] each, padded on the right. If
    None, the reference is the plain model: `lm` outside `policy`, with logits that are not adjusted.
    """
    device = next(lm.parameters()).device
    limit = context_length(lm.config, tokenizer, None)
    known = {prompt: render_prompt(tokenizer, None, prompt)[-max(1, limit - max_tokens) :] for prompt in set(prompts)}
    asked = [known[prompt] for prompt in prompts]
    if not all(asked):
        raise ValueError(f"{sum(not tokens for tokens in asked)} prompts have no tokens")
    keys = [(seeds, row) for row in range(len(prompts))] if isinstance(seeds, (int, np.integer)) else seeds
    writer = PolicyWriter(lm, asked, limit, policy, adjust_logits, reference)
    ends = end_tokens(lm, tokenizer)
    length = token_counts(asked)
    room = np.minimum(max_tokens, limit - length)
    said: list[list[int]] = [[] for _ in prompts]
    stopped = np.zeros(len(prompts), dtype=bool)
    columns = np.zeros((2, len(prompts)), dtype=np.float32)
    with torch.no_grad(), evaluation_mode(lm):
        for rows in batches_by_length(length + room, MAX_BATCH_TOKENS):
            draws = [np.random.default_rng(keys[row]).random(room[row]) for row in rows]
            for row, drawn in zip(rows, writer.sample_responses(rows, draws, ends), strict=True):
                said[row], stopped[row], _ = drawn
        n_tokens = token_counts(said)
        budget = MAX_BATCH_TOKENS if device.type == "cuda" else MAX_CPU_BATCH_TOKENS
        for rows in batches_by_length(
            length + n_tokens, min(budget, MAX_MEASURED_LOGITS // lm.config.get_text_config().vocab_size)
        ):
            columns[:, rows] = writer.measure_divergence(rows, [said[row] for row in rows])
    texts = [make_sample(tokenizer, *row, 0.0).text for row in zip(said, stopped.tolist(), strict=True)]
    return pa.table(
        [pa.array(texts, pa.large_string()), n_tokens, stopped, *columns], names=GENERATED_SCHEMA.names
    ).cast(GENERATED_SCHEMA)


@dataclass(frozen=True, eq=False)
class PolicyWriter:
    """A model, the tokens of its prompts, and the policy of each row; see `write_responses`."""

    lm: PreTrainedModel
    prompts: list[list[int]]
    context_length: int
    policy: Condition | None
    adjust_logits: AdjustLogits | None
    reference: Reference | None

    def policy_logits(self, rows: np.ndarray, ids: Tensor, mask: Tensor, last: int, cache=None) -> tuple[Tensor, Any]:
        """Return the policy's logits float[b, last, V] at the last positions (0: all positions), and the cache."""
        with nullcontext() if self.policy is None else self.policy(rows):
            out = self.lm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=token_positions(mask, ids.shape[1], self.context_length),
                use_cache=last > 0,
                output_hidden_states=self.adjust_logits is not None,
                logits_to_keep=last,
                **{cache_option(self.lm): cache},
            )
        if self.adjust_logits is None:
            return out.logits, returned_cache(out)
        return self.adjust_logits(rows, out.hidden_states[-1][:, -last:], out.logits), returned_cache(out)

    def sample_responses(self, rows: np.ndarray, draws: list[np.ndarray], ends: Tensor) -> list[DrawnSample]:
        """Sample a response to each row's prompt, with at most one token per uniform number in `draws`."""

        def forward(line: Tensor, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
            logits, cache = self.policy_logits(rows[line.cpu().numpy()], ids, mask, 1, cache)
            return logits[:, -1], cache

        asked = pad_tokens([self.prompts[row] for row in rows], ends.device, left=True)
        return sample_batch(forward, asked, np.arange(len(rows)), draws, ends)

    def measure_divergence(self, rows: np.ndarray, said: list[list[int]]) -> np.ndarray:
        """Return float[2, b] for the responses `said`: KL from the reference, and mean log-probability of a token.

        The KL is that of the policy, summed over a response's tokens. The log-probability is that under the reference.
        """
        asked = [self.prompts[row] for row in rows]
        n_tokens = token_counts(said)
        device = next(self.lm.parameters()).device
        ids, mask = pad_tokens([before + after for before, after in zip(asked, said, strict=True)], device)
        line = np.repeat(np.arange(len(rows)), n_tokens)
        start = np.repeat(token_counts(asked), n_tokens)
        place = start + np.concatenate([np.arange(n) for n in n_tokens])  # positions of the responses' tokens
        p = self.policy_logits(rows, ids, mask, 0)[0][line, place - 1].float().log_softmax(1)
        if self.policy is None and self.adjust_logits is None and self.reference is None:
            q = p
        elif self.reference is None:
            plain = self.lm(input_ids=ids, attention_mask=mask, use_cache=False).logits
            q = plain[line, place - 1].float().log_softmax(1)
        else:
            q = self.reference(ids, mask)[line, place - 1].float().log_softmax(1)
        divergence = (p.exp() * (p - q)).sum(1).clamp(min=0)  # only rounding errors are negative
        likely = q.gather(1, ids[line, place][:, None])[:, 0]
        sums = torch.zeros(2, len(rows), device=device)
        sums.index_add_(1, torch.from_numpy(line).to(device), torch.stack([divergence, likely]))
        kl, total = sums.cpu().numpy()
        return np.stack([kl, total / n_tokens])


@contextmanager
def evaluation_mode(lm: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off within the context; restore each module's mode afterwards."""
    before = [(module, module.training) for module in lm.modules()]
    lm.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
