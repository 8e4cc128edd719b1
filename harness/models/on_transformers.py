"""Language models run by plain PyTorch: the only door to models of the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.models.base import TOKENS, Engine, Sample, as_sample, check_variety
from harness.models.tokens import batches_by_length, context_length, first_tokens, lengths, open_tokenizer

TOKENS_ON_CPU = 2_048  # of a batch that is read, not written: 16,384 fall out of the caches, and take a quarter longer


class Transformers(Engine):
    """The plain PyTorch model, in batches of like lengths under a budget of tokens."""

    def __init__(self, folder: Path, use: str, dtype: str, max_length: int | None) -> None:
        import torch
        from transformers import AutoModel, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens = TOKENS if self.device.type == "cuda" or use == "sample" else TOKENS_ON_CPU
        kind = AutoModel if use == "embed" else AutoModelForCausalLM
        self.model = (
            kind.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False)
            .to(self.device)
            .eval()
        )
        self.tokenizer = open_tokenizer(folder)
        self.context_length = context_length(self.model.config, self.tokenizer, max_length)
        ends = self.model.generation_config.eos_token_id if use == "sample" else None
        ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.ends = torch.tensor(sorted(ends), device=self.device)
        self.pad = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)

    def sample(self, prompts, seeds, n, temperature=1.0, top_p=1.0, max_tokens=512):
        self.check(prompts, room=1)
        check_variety(n, temperature)
        length = lengths(prompts)
        room = np.minimum(max_tokens, self.context_length - length)
        samples = np.empty(len(prompts) * n, dtype=object)
        for rows in batches_by_length(np.repeat(length + room, n), self.tokens):
            which, of_row = np.unique(rows // n, return_inverse=True)  # each prompt is read once
            draws = [np.random.default_rng([seeds[row // n], row % n]).random(room[row // n]) for row in rows]
            samples[rows] = self.write([prompts[i] for i in which], of_row, draws, temperature, top_p)
        return samples.reshape(len(prompts), n).tolist()

    def write(self, prompts, of_row, draws, temperature, top_p) -> list[Sample]:
        """A sample for each row i: of prompt of_row[i], its tokens by the uniform numbers draws[i], as far as they go."""
        import torch

        limit = torch.tensor([len(row) for row in draws], device=self.device)
        draws, _ = self.padded(draws, torch.float64)
        tokens, logprobs = torch.zeros_like(draws, dtype=torch.long), torch.zeros_like(draws)
        n_tokens = torch.zeros_like(limit)

        rows = torch.arange(len(limit), device=self.device)  # those still in the batch
        live = torch.ones_like(rows, dtype=torch.bool)  # those of them that go on
        first = torch.from_numpy(of_row).to(self.device)
        with torch.inference_mode():
            ids, mask = self.padded(prompts, torch.long, left=True)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            out = self.model(ids, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1)
            cache, mask, logits = out.past_key_values, mask[first], out.logits[first, -1].double()
            cache.reorder_cache(first)
            for step in range(draws.shape[1]):
                token = draw(logits, draws[rows, step], temperature, top_p)
                tokens[rows, step] = token
                logprobs[rows, step] = logits.log_softmax(1).gather(1, token[:, None])[:, 0]
                ended = torch.isin(token, self.ends) | (limit[rows] == step + 1)
                n_tokens[rows[live & ended]] = step + 1
                live &= ~ended
                n_live = int(live.sum())
                if n_live == 0:
                    break
                if n_live < 0.75 * len(live):  # dropping the others copies the cache, which costs about a step
                    rows, token, mask = rows[live], token[live], mask[live]
                    cache.reorder_cache(live.nonzero()[:, 0])
                    live = live[live]
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                places = (mask.sum(1, keepdim=True) - 1).clamp(max=self.context_length - 1)
                out = self.model(token[:, None], attention_mask=mask, position_ids=places, past_key_values=cache)
                logits = out.logits[:, -1].double()
        stop = torch.isin(tokens.gather(1, n_tokens[:, None] - 1)[:, 0], self.ends).tolist()
        total = [float(row[:k].sum()) for row, k in zip(logprobs.cpu(), n_tokens, strict=True)]
        said = [row[:k].tolist() for row, k in zip(tokens.cpu(), n_tokens, strict=True)]
        return [as_sample(self.tokenizer, *sample) for sample in zip(said, stop, total, strict=True)]

    def answer(self, prompts, words):
        import torch

        self.check(prompts, room=1)
        first, second = first_tokens(self.tokenizer, words)
        odds = np.empty(len(prompts))
        for rows in batches_by_length(lengths(prompts), self.tokens):
            with torch.inference_mode():
                ids, mask = self.padded([prompts[i] for i in rows], torch.long, left=True)
                places = (mask.cumsum(1) - 1).clamp(min=0)
                logits = self.model(ids, attention_mask=mask, position_ids=places, logits_to_keep=1).logits[:, -1]
                odds[rows] = (logits[:, first].double() - logits[:, second].double()).cpu().numpy()
        return odds

    def embed(self, texts, pooling="last"):
        import torch

        self.check(texts, room=0)
        vectors = np.empty((len(texts), self.model.config.get_text_config().hidden_size), dtype=np.float32)
        for rows in batches_by_length(lengths(texts), self.tokens):
            with torch.inference_mode():
                ids, mask = self.padded([texts[i] for i in rows], torch.long)
                hidden = self.model(ids, attention_mask=mask).last_hidden_state.float()
                if pooling == "mean":
                    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                else:
                    pooled = hidden[torch.arange(len(rows), device=self.device), mask.sum(1) - 1]
                vectors[rows] = pooled.cpu().numpy()
        return vectors

    def padded(self, rows: Sequence[Sequence], dtype, left: bool = False):
        """Rows of any lengths as one tensor, and the int64 mask of what is not padding."""
        import torch

        rows = [torch.as_tensor(row, dtype=dtype) for row in rows]
        side = "left" if left else "right"
        pad = torch.nn.utils.rnn.pad_sequence
        values = pad(rows, batch_first=True, padding_value=self.pad, padding_side=side)
        mask = pad([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True, padding_side=side)
        return values.to(self.device), mask.to(self.device)


def draw(logits, uniform, temperature: float, top_p: float):
    """The token of each row at which the cumulative probability passes its uniform number; the likeliest at 0 degrees.

    logits: float64[rows, vocabulary]; uniform: float64[rows]. Below top_p = 1 only the likeliest tokens count that
    together reach it.
    """
    import torch

    if temperature == 0:
        return logits.argmax(1)
    p = (logits / temperature).softmax(1)
    if top_p < 1:
        ranked, token = p.sort(dim=1, descending=True, stable=True)
        p = p.scatter(1, token, ranked.masked_fill(ranked.cumsum(1) - ranked >= top_p, 0))
    mass = p.cumsum(1)
    place = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True)
    return place.clamp(max=p.shape[1] - 1)[:, 0]
