"""Language models of the transformers library, run by plain PyTorch."""

from __future__ import annotations

import copy
from itertools import pairwise
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
# Most tokens of a batch in which every token's probability is needed: the logits of 150,000 words then take 2.5 GB.
MAX_SCORED_TOKENS = 4_096


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
        from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
        from transformers.utils import logging

        from harness.models.sampling import end_tokens

        logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens = MAX_BATCH_TOKENS if self.device.type == "cuda" or use == "sample" else MAX_CPU_BATCH_TOKENS
        kind = {"embed": AutoModel, "classify": AutoModelForSequenceClassification}.get(use, AutoModelForCausalLM)
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
        from harness.models.sampling import cache_option, returned_cache, token_positions

        places, known = token_positions(mask, ids.shape[1], self.context_length), {cache_option(self.model): cache}
        out = self.model(ids, attention_mask=mask, position_ids=places, use_cache=True, logits_to_keep=1, **known)
        return out.logits[:, -1], returned_cache(out)

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

    def log_likelihood(self, beginnings, rest, scored):
        self.check_prompt_lengths([[*first, *then] for first, then in zip(beginnings, rest, strict=True)], room=0)
        found, scored = np.empty(len(rest)), np.asarray(scored)
        same = [row and np.array_equal(beginnings[row], beginnings[row - 1]) for row in range(len(rest))]
        starts = [row for row, repeated in enumerate(same) if not repeated]
        for start, stop in pairwise([*starts, len(rest)]):
            cache = self.read_beginning(beginnings[start][:-1])
            last = beginnings[start][-1:]
            length = token_counts(rest[start:stop]) + 1
            whole = length + len(beginnings[start])
            # the share that each text takes of: tokens to read, of the cache, and of logits
            share = [length / self.tokens, whole / MAX_BATCH_TOKENS, length / MAX_SCORED_TOKENS]
            for rows in batches_by_length(np.ceil(np.max(share, axis=0) * self.tokens).astype(np.int64), self.tokens):
                texts = [np.concatenate([last, rest[start + row]]) for row in rows]
                found[start + rows] = self.score_texts(texts, scored[start + rows], cache)
        return found

    def read_beginning(self, tokens):
        """Return the cache of keys and values of tokens; None for no tokens."""
        import torch

        from harness.models.sampling import returned_cache

        if not len(tokens):
            return None
        with torch.inference_mode():
            ids = torch.as_tensor(np.asarray(tokens), dtype=torch.long, device=self.device)[None]
            return returned_cache(self.model(ids, use_cache=True, logits_to_keep=1))

    def score_texts(self, texts, scored, cache):
        """Return float64[n]: the summed log-probability of the last scored[i] tokens of texts[i] after a cached beginning."""
        import torch

        from harness.models.sampling import cache_option, pad_tokens

        with torch.inference_mode():
            ids, mask = pad_tokens(texts, self.device, pad=self.pad)
            read = 0 if cache is None else cache.get_seq_length()
            if cache is not None:
                cache = copy.deepcopy(cache)
                cache.batch_repeat_interleave(len(texts))
            seen = torch.ones((len(texts), read), dtype=mask.dtype, device=self.device)
            places = torch.arange(read, read + ids.shape[1], device=self.device).expand(ids.shape)
            logits = self.model(
                ids,
                attention_mask=torch.cat([seen, mask], 1),
                position_ids=places,
                use_cache=True,
                **{cache_option(self.model): cache},
            ).logits
            length = mask.sum(1, keepdim=True)
            place = torch.arange(1, ids.shape[1], device=self.device)
            counts = (place < length) & (place >= length - torch.as_tensor(scored, device=self.device)[:, None])
            row, token = counts.nonzero(as_tuple=True)
            chosen = logits[row, token].float().log_softmax(1)
            each = chosen.gather(1, ids[row, token + 1][:, None])[:, 0].double()
            return (
                torch.zeros(len(texts), dtype=torch.float64, device=self.device).index_add_(0, row, each).cpu().numpy()
            )

    def embed(self, texts, pooling="last"):
        import torch

        from harness.models.sampling import pad_tokens

        self.check_prompt_lengths(texts, room=0)
        if pooling == "heads":
            return self.read_heads(texts)
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

    def read_heads(self, texts):
        """Return float32[n, heads]: the outputs of a sequence-classification model."""
        import torch

        from harness.models.sampling import pad_tokens

        config = self.model.config.get_text_config()
        own_pad, found = config.pad_token_id, np.empty((len(texts), self.model.config.num_labels), dtype=np.float32)
        for rows in batches_by_length(token_counts(texts), self.tokens):
            batch = [np.asarray(texts[i]) for i in rows]
            # decoders find a text's last token by the padding's number: a model without one gets a number that no text has
            pad = own_pad if own_pad is not None else unused_token(batch, config.vocab_size)
            config.pad_token_id = pad
            with torch.inference_mode():
                ids, mask = pad_tokens(batch, self.device, pad=pad)
                found[rows] = self.model(ids, attention_mask=mask).logits.float().cpu().numpy()
        config.pad_token_id = own_pad
        return found


def unused_token(texts: list[np.ndarray], vocabulary: int) -> int:
    """Return the largest number of a token that no text has."""
    used = np.unique(np.concatenate(texts))
    return int(np.setdiff1d(np.arange(vocabulary - len(used) - 1, vocabulary), used)[-1])
