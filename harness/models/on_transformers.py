"""Language models run by plain PyTorch: the only door to models of the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.models.base import TOKENS, Engine, as_sample, check_variety
from harness.models.tokens import batches_by_length, context_length, first_tokens, lengths, open_tokenizer

TOKENS_ON_CPU = 2_048  # of a batch that is read, not written: 16,384 fall out of the caches, and take a quarter longer


class Transformers(Engine):
    """The plain PyTorch model, in batches of like lengths under a budget of tokens."""

    def __init__(self, folder: Path, use: str, dtype: str, max_length: int | None) -> None:
        import torch
        from transformers import AutoModel, AutoModelForCausalLM
        from transformers.utils import logging

        from harness.models.sampling import ends_of

        logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens = TOKENS if self.device.type == "cuda" or use == "sample" else TOKENS_ON_CPU
        kind = AutoModel if use == "embed" else AutoModelForCausalLM
        model: Any = kind.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
        self.model = model.to(self.device).eval()
        self.tokenizer = open_tokenizer(folder)
        self.context_length = context_length(self.model.config, self.tokenizer, max_length)
        if use == "sample":
            self.ends = ends_of(self.model, self.tokenizer)
        self.pad = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)

    def sample(self, prompts, seeds, n, temperature=1.0, top_p=1.0, max_tokens=512):
        import torch

        from harness.models.sampling import padded, sample_batch

        self.check(prompts, room=1)
        check_variety(n, temperature)
        length = lengths(prompts)
        room = np.minimum(max_tokens, self.context_length - length)
        samples = np.empty(len(prompts) * n, dtype=object)
        for rows in batches_by_length(np.repeat(length + room, n), self.tokens):
            which, of_row = np.unique(rows // n, return_inverse=True)  # each prompt is read once
            draws = [np.random.default_rng([seeds[row // n], row % n]).random(room[row // n]) for row in rows]
            asked = padded([prompts[i] for i in which], self.device, left=True, pad=self.pad)
            with torch.inference_mode():
                some = sample_batch(self.forward, asked, of_row, draws, self.ends, temperature, top_p)
            samples[rows] = [as_sample(self.tokenizer, *drawn) for drawn in some]
        return samples.reshape(len(prompts), n).tolist()

    def forward(self, prompt, ids, mask, cache):
        """What `sample_batch` asks of a model."""
        from harness.models.sampling import positions

        places = positions(mask, ids.shape[1], self.context_length)
        out = self.model(
            ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[:, -1], out.past_key_values

    def answer(self, prompts, words):
        import torch

        from harness.models.sampling import padded, positions

        self.check(prompts, room=1)
        first, second = first_tokens(self.tokenizer, words)
        odds = np.empty(len(prompts))
        for rows in batches_by_length(lengths(prompts), self.tokens):
            with torch.inference_mode():
                ids, mask = padded([prompts[i] for i in rows], self.device, left=True, pad=self.pad)
                places = positions(mask, ids.shape[1], self.context_length)
                logits = self.model(ids, attention_mask=mask, position_ids=places, logits_to_keep=1).logits[:, -1]
                odds[rows] = (logits[:, first].double() - logits[:, second].double()).cpu().numpy()
        return odds

    def embed(self, texts, pooling="last"):
        import torch

        from harness.models.sampling import padded

        self.check(texts, room=0)
        vectors = np.empty((len(texts), self.model.config.get_text_config().hidden_size), dtype=np.float32)
        for rows in batches_by_length(lengths(texts), self.tokens):
            with torch.inference_mode():
                ids, mask = padded([texts[i] for i in rows], self.device, pad=self.pad)
                hidden = self.model(ids, attention_mask=mask).last_hidden_state.float()
                if pooling == "mean":
                    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                else:
                    pooled = hidden[torch.arange(len(rows), device=self.device), mask.sum(1) - 1]
                vectors[rows] = pooled.cpu().numpy()
        return vectors
