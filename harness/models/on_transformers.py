"""Language models of the transformers library, run by plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.models.base import MAX_BATCH_TOKENS, Engine, check_samples_can_differ, make_sample
from harness.models.inputs import open_tokenizer
from harness.models.loading import loading_errors_as_user_errors
from harness.models.tokens import batches_by_length, context_length, first_tokens, token_counts

# Most tokens of a batch on a CPU where texts are only read. Batches of 16,384 exceed its caches and take a quarter
# longer.
MAX_CPU_BATCH_TOKENS = 2_048


class InnerStates:
    """The states of tokens inside a model: their mean after layers `first` to `last`; later layers are dropped."""

    def __init__(self, model: Any, folder: Path, first: int, last: int) -> None:
        from torch import nn

        n = model.config.get_text_config().num_hidden_layers
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n]
        if not stacks:
            raise UserError(f"the layers of the model in {folder} cannot be told apart", "leave out layer")
        if last > n:
            raise UserError(f"layer {last} is asked for, and the model in {folder} has {n} layers", f"layer={n // 2}")
        self.found: list = []
        for layer in stacks[0][first - 1 : last]:
            layer.register_forward_hook(self._keep)
        del stacks[0][last:]

    def _keep(self, layer: Any, inputs: Any, output: Any) -> None:
        self.found.append((output[0] if isinstance(output, tuple) else output).float())

    def take_mean(self) -> Any:
        """Return the mean of the states of the last batch, float32[b, t, d]."""
        mean = sum(self.found) / len(self.found)
        self.found = []
        return mean


class Transformers(Engine):
    """An engine that runs the PyTorch model in batches of similar lengths, with a limited number of tokens each."""

    def __init__(
        self, folder: Path, use: str, dtype: str, max_length: int | None, layers: tuple[int, int] | None = None
    ) -> None:
        import torch
        from transformers import AutoModel, AutoModelForCausalLM
        from transformers.utils import logging

        from harness.models.sampling import end_tokens

        logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens = MAX_BATCH_TOKENS if self.device.type == "cuda" or use == "sample" else MAX_CPU_BATCH_TOKENS
        kind = AutoModel if use == "embed" else AutoModelForCausalLM
        with loading_errors_as_user_errors(folder):
            model: Any = kind.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
            )
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self.states = InnerStates(model, folder, *layers) if layers else None
        self.model = model.to(self.device).eval()
        self.tokenizer = open_tokenizer(folder)
        self.context_length = context_length(self.model.config, self.tokenizer, max_length)
        if use == "sample":
            self.ends = end_tokens(self.model, self.tokenizer)
        self.pad = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)

    def sample(self, prompts, seeds, n, temperature=1.0, top_p=1.0, max_tokens=512):
        import torch

        from harness.models.sampling import pad_tokens, sample_batch

        self.check_prompt_lengths(prompts, room=1)
        check_samples_can_differ(n, temperature)
        length = token_counts(prompts)
        room = np.minimum(max_tokens, self.context_length - length)
        samples = np.empty(len(prompts) * n, dtype=object)
        for rows in batches_by_length(np.repeat(length + room, n), self.tokens):
            which, of_row = np.unique(rows // n, return_inverse=True)  # each prompt is read once
            draws = [np.random.default_rng([seeds[row // n], row % n]).random(room[row // n]) for row in rows]
            asked = pad_tokens([prompts[i] for i in which], self.device, left=True, pad=self.pad)
            with torch.inference_mode():
                some = sample_batch(self.next_token_logits, asked, of_row, draws, self.ends, temperature, top_p)
            samples[rows] = [make_sample(self.tokenizer, *drawn) for drawn in some]
        return samples.reshape(len(prompts), n).tolist()

    def next_token_logits(self, prompt, ids, mask, cache):
        """Return the logits of the next token and the cache; this is `sample_batch`'s `forward`."""
        from harness.models.sampling import token_positions

        places = token_positions(mask, ids.shape[1], self.context_length)
        out = self.model(
            ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return out.logits[:, -1], out.past_key_values

    def answer(self, prompts, words):
        import torch

        from harness.models.sampling import pad_tokens, token_positions

        self.check_prompt_lengths(prompts, room=1)
        first, second = first_tokens(self.tokenizer, words)
        odds = np.empty(len(prompts))
        for rows in batches_by_length(token_counts(prompts), self.tokens):
            with torch.inference_mode():
                ids, mask = pad_tokens([prompts[i] for i in rows], self.device, left=True, pad=self.pad)
                places = token_positions(mask, ids.shape[1], self.context_length)
                logits = self.model(ids, attention_mask=mask, position_ids=places, logits_to_keep=1).logits[:, -1]
                odds[rows] = (logits[:, first].double() - logits[:, second].double()).cpu().numpy()
        return odds

    def embed(self, texts, pooling="last"):
        import torch

        from harness.models.sampling import pad_tokens

        self.check_prompt_lengths(texts, room=0)
        vectors = np.empty((len(texts), self.model.config.get_text_config().hidden_size), dtype=np.float32)
        for rows in batches_by_length(token_counts(texts), self.tokens):
            with torch.inference_mode():
                ids, mask = pad_tokens([texts[i] for i in rows], self.device, pad=self.pad)
                hidden = self.model(ids, attention_mask=mask).last_hidden_state.float()
                if self.states:
                    hidden = self.states.take_mean()
                if pooling == "mean":
                    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                elif pooling == "cls":
                    pooled = hidden[:, 0]
                else:
                    pooled = hidden[torch.arange(len(rows), device=self.device), mask.sum(1) - 1]
                vectors[rows] = pooled.cpu().numpy()
        return vectors
