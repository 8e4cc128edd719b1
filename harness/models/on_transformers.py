"""Language models of the transformers library, run by plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.models.base import MAX_BATCH_TOKENS, Engine, check_samples_can_differ, make_sample
from harness.models.inputs import open_tokenizer
from harness.models.loading import loading_errors_as_user_errors
from harness.models.packing import may_pack, pack_texts, split_shared
from harness.models.tokens import batches_by_length, context_length, first_tokens, token_counts

# Most tokens of a batch on a CPU where texts are only read. Batches of 16,384 exceed its caches and take a quarter
# longer.
MAX_CPU_BATCH_TOKENS = 2_048
# Most tokens of a batch in which every token's probability may be needed: the logits of 150,000 words then take 2.5 GB.
MAX_SCORED_TOKENS = 4_096
# Attention among packed tokens grows with the square of their number: on two cores 256 to 1,024 are as fast as any.
MAX_CPU_PACKED_TOKENS = 512
# Largest difference between logits of packed texts and of texts alone, in standard deviations of the logits. Rounding in
# bfloat16 makes one of about .03; a token that sees another text, about 1.
MAX_PACKING_ERROR = 0.15


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
        self.packs: bool | None = None  # whether packed texts are read as alone; not known yet
        self.beginning: tuple[np.ndarray, Any] | None = (
            None  # the last long one that was read, with its keys and values
        )
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
        self.check_prompt_lengths(prompts, room=1)
        first, second = first_tokens(self.tokenizer, words)
        odds = np.empty(len(prompts))
        shared = split_shared(prompts)
        begun = [prompt[:n] for prompt, n in zip(prompts, shared, strict=True)]
        own = [prompt[n:] for prompt, n in zip(prompts, shared, strict=True)]
        for rows, logits in self.next_logits(begun, own, [slice(-1, None)] * len(own)):
            odds[rows] = (logits[:, first].double() - logits[:, second].double()).cpu().numpy()
        return odds

    def log_likelihood(self, beginnings, rest, scored):
        import torch

        self.check_prompt_lengths([[*first, *then] for first, then in zip(beginnings, rest, strict=True)], room=0)
        found = np.empty(len(rest))
        # the beginning's last token goes with each text, since the first token of a text is asked for there
        texts = [np.concatenate([first[-1:], then]) for first, then in zip(beginnings, rest, strict=True)]
        kept = [
            slice(len(text) - 1 - n, len(text) - 1) for text, n in zip(texts, np.asarray(scored).tolist(), strict=True)
        ]
        for rows, logits in self.next_logits([first[:-1] for first in beginnings], texts, kept):
            counts = [kept[row].stop - kept[row].start for row in rows]
            then = np.concatenate([texts[row][kept[row].start + 1 : kept[row].stop + 1] for row in rows])
            token = torch.from_numpy(then).to(self.device)[:, None]
            each = logits.float().log_softmax(1).gather(1, token)[:, 0].double().cpu().numpy()
            found[rows] = np.add.reduceat(each, np.cumsum([0, *counts[:-1]]))
        return found

    def next_logits(self, beginnings, texts, kept):
        """Yield numbers of texts, and logits [k, V] of the tokens after the places kept[i] of each of these texts.

        beginnings[i] stands before texts[i]. All logits of one text come together.
        """
        import torch

        from harness.models.sampling import pad_tokens

        if len(texts) and self.can_pack():
            limit = MAX_SCORED_TOKENS if self.device.type == "cuda" else MAX_CPU_PACKED_TOKENS
            for pack in pack_texts(beginnings, texts, kept, limit):
                with torch.inference_mode():
                    yield pack.rows, self.packed_logits(pack)
            return
        whole = [
            np.concatenate([np.asarray(first, dtype=np.int64), then])
            for first, then in zip(beginnings, texts, strict=True)
        ]
        for rows in batches_by_length(token_counts(whole), min(self.tokens, MAX_SCORED_TOKENS)):
            with torch.inference_mode():
                ids, mask = pad_tokens([whole[i] for i in rows], self.device, pad=self.pad)
                logits = self.model(ids, attention_mask=mask).logits
                yield (
                    rows.tolist(),
                    torch.cat(
                        [
                            logits[place, len(beginnings[row]) : len(whole[row])][kept[row]]
                            for place, row in enumerate(rows.tolist())
                        ]
                    ),
                )

    def logits_alone(self, beginning, text):
        """Return the logits [t, V] of the tokens after each token of a text that follows a beginning."""
        import torch

        ids = torch.from_numpy(np.concatenate([beginning, text])).to(self.device)
        return self.model(ids[None]).logits[0, len(beginning) :]

    def packed_logits(self, pack):
        """Return the logits [k, V] of the tokens after the places that are kept."""
        import torch

        from harness.models.sampling import cache_option

        cache = self.read_beginning(pack.before)
        ids, places, kept = (torch.from_numpy(part).to(self.device) for part in (pack.ids, pack.position, pack.kept))
        mask = torch.zeros(
            1, dtype=self.model.dtype, device=self.device
        )  # a mask of numbers works with every attention
        mask = mask.masked_fill(~pack.mask(self.device), torch.finfo(self.model.dtype).min)
        out = self.model(
            ids[None],
            attention_mask=mask,
            position_ids=places[None],
            use_cache=cache is not None,
            logits_to_keep=kept,
            **({} if cache is None else {cache_option(self.model): cache}),
        )
        if cache is not None:
            cache.crop(-len(pack.ids))  # the texts' own keys and values are dropped
        return out.logits[0]

    def read_beginning(self, tokens):
        """Return the keys and values of a beginning, those of the last one from memory; None for no tokens."""
        import torch

        from harness.models.sampling import returned_cache

        if not len(tokens):
            return None
        if self.beginning is None or not np.array_equal(self.beginning[0], tokens):
            self.beginning = None  # frees the memory of the one before
            ids = torch.from_numpy(tokens).to(self.device)[None]
            self.beginning = tokens, returned_cache(self.model(ids, use_cache=True, logits_to_keep=1))
        return self.beginning[1]

    def can_pack(self):
        """Return whether this model reads packed texts as it reads each text alone, tried once on a few tokens."""
        if self.packs is None:
            self.packs = may_pack(self.model.config) and self.try_packing()
        return self.packs

    def try_packing(self):
        """Compare logits of three made-up texts, packed with and without keys and values that are kept, and alone."""
        import torch

        tokens = np.arange(1, 19) % self.model.config.get_text_config().vocab_size
        one, other, third, fourth = np.split(tokens, [4, 10, 13])
        beginnings, texts = [one, one, fourth], [other, third, other]
        try:
            with torch.inference_mode():
                alone = torch.cat([self.logits_alone(*both) for both in zip(beginnings, texts, strict=True)]).double()
                for limit in (100, 12):
                    packs = pack_texts(beginnings, texts, [slice(None)] * 3, limit)
                    packed = torch.cat([self.packed_logits(pack) for pack in packs]).double()
                    error = (packed - alone).abs().max() if packed.shape == alone.shape else alone.std()
                    if not error < MAX_PACKING_ERROR * alone.std():
                        return False
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False  # the model takes no such mask, keeps no chosen logits, or has another kind of cache
        return True

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
