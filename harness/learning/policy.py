"""A causal language model as a policy: whole or by LoRA, modulated by a user's vector, and what it thinks of responses."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness import parallel
from harness.data import Items
from harness.errors import UserError
from harness.method import Run
from harness.models.names import LanguageModel, parse_model
from harness.models.tokens import batches_by_length, context_length, open_tokenizer, render_prompt
from harness.store.store import Store, identity_hash

POLICY_MODEL_DEFAULTS: dict[str, object] = {
    "max_length": 2048
}  # tokens of a prompt and its response, where the model's own context is not shorter
POLICY_RECIPE = 1  # raised whenever the same model would find other tokens or log-probabilities
# Of a batch, padding included. On a GPU the float32 logits of 150,000 words take 5 GB, and so do their gradients.
MAX_POLICY_TOKENS = 8192
MAX_CPU_POLICY_TOKENS = 2048  # larger batches fall out of the caches


def parse_policy_model(name: str) -> LanguageModel:
    """The language model that `name` names. Raises UserError where it is none that can be trained."""
    model = parse_model(name, POLICY_MODEL_DEFAULTS, POLICY_RECIPE)
    if model.engine != "transformers":
        raise UserError(f"{name!r}: policies are trained in transformers", f"transformers:{model.model}")
    if model["max_length"] < 2:
        raise UserError(f"{name!r}: max_length is below 2", "leave it out for 2048")
    return model


def canonical_policy_model(name: str) -> str:
    """One string for one model: what a method's field `model` has as its identity."""
    return parse_policy_model(name).canonical_name


CausalLM = Any  # a transformers.PreTrainedModel, perhaps with PEFT's terms around it


def torch_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_run_store(run: Run) -> Store:
    """The run's store. ValueError where it has none: language models, and what they say, are kept in one."""
    if run.store is None:
        raise ValueError("a policy needs a store: Run(seed, store=Store(folder))")
    return run.store


@dataclass(frozen=True, eq=False)
class ItemTokens:
    """Items as a model reads them: item i is ids[start[i]:start[i + 1]], its response from answer[i] on."""

    ids: np.ndarray  # int32[all tokens]
    start: np.ndarray  # int64[items + 1]
    response_start: np.ndarray  # int64[items]

    @property
    def length(self) -> np.ndarray:
        return np.diff(self.start)

    def padded_batch(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ids int64, mask bool and response bool, each [rows, longest]; padding stands on the right."""
        place = np.arange(self.length[rows].max())
        mask = place < self.length[rows][:, None]
        ids = self.ids[np.where(mask, self.start[rows][:, None] + place, 0)]
        response = mask & (place >= (self.response_start - self.start[:-1])[rows][:, None])
        ids = np.where(mask, ids, 0).astype(np.int64)
        return (
            torch.from_numpy(ids).to(device),
            torch.from_numpy(mask).to(device),
            torch.from_numpy(response).to(device),
        )


@lru_cache(2)  # of a trial, which asks a dozen times; Items are hashed by identity
def tokenise_items(items: Items, model: LanguageModel, store: Store, max_response_tokens: int = 0) -> ItemTokens:
    """All items' tokens: the prompt by the model's chat template (or plain), the response, and the token that ends it.

    A response longer than `max_response_tokens` tokens loses its end (0: none does). A prompt loses its beginning where both do not fit.
    ValueError for empty responses, for such as do not fit, and where a tokenizer has no token that ends a text: a policy
    would never learn to stop.
    """
    tokenizer = open_tokenizer(model.model_folder(store))
    room = context_length(model_config(model.model_folder(store)), tokenizer, model["max_length"])
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{model.model}: its tokenizer has no token that ends a text, so no policy can learn to stop")
    prompts, responses = (items.known_text[name].to_pylist() for name in ("prompt", "response"))
    if empty := [i for i, text in enumerate(responses) if not text.strip()]:
        raise ValueError(f"{len(empty)} responses are empty, for example that of item {empty[0]}")
    before = {prompt: render_prompt(tokenizer, None, prompt) for prompt in set(prompts)}
    said = tokenizer(responses, add_special_tokens=False, verbose=False)["input_ids"]
    after = [
        ids[:max_response_tokens] if 0 < max_response_tokens < len(ids) else [*ids, tokenizer.eos_token_id]
        for ids in said
    ]
    if long := [i for i, ids in enumerate(after) if len(ids) >= room]:
        raise ValueError(
            f"{len(long)} responses are longer than the context of {room} tokens, for example item {long[0]} "
            f"with {len(after[long[0]])}: max_response_tokens = {room // 2} cuts them; or take a model with a longer context"
        )
    heads = [before[prompt][-(room - len(ids)) :] for prompt, ids in zip(prompts, after, strict=True)]
    length = np.array([len(head) + len(ids) for head, ids in zip(heads, after, strict=True)])
    start = np.concatenate([[0], length.cumsum()])
    ids = np.fromiter(
        (t for pair in zip(heads, after, strict=True) for part in pair for t in part), np.int32, start[-1]
    )
    return ItemTokens(ids, start, start[:-1] + [len(head) for head in heads])


@lru_cache(8)
def model_config(folder: Path):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def load_language_model(folder: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    """The causal language model in a folder, on this process's device, without dropout."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    opened: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    return opened.to(torch_device()).eval()


def add_lora(model: CausalLM, rank: int, seed: int) -> CausalLM:
    """The model with trainable low-rank terms beside every linear layer but the last (Hu et al. 2021), which begin at zero."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(category=FutureWarning, action="ignore"):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


class Policy(nn.Module):
    """A language model, and where `film` is there a network that modulates each of its blocks for a user.

    A block's output o becomes (1 + scale) * o + shift (FiLM, Perez et al. 2017; Few-shot Steerable, eq. 23).
    """

    def __init__(self, model: CausalLM, film: Film | None = None) -> None:
        super().__init__()
        self.lm: CausalLM = model
        self.film = film
        self.modulation: torch.Tensor | None = None  # float32[batch, blocks, 2, hidden], of the batch in work
        me = weakref.ref(self)  # else the model held itself, with its gradients, until Python looks for such rings
        for place, block in enumerate(transformer_blocks(model) if film is not None else []):
            block.register_forward_hook(partial(_modulation_hook, me, place))

    def modulate_block(self, place: int, output):
        if self.modulation is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        scale, shift = self.modulation[:, place].to(hidden.dtype).unbind(1)
        hidden = torch.addcmul(shift[:, None], hidden, 1 + scale[:, None])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        response: torch.Tensor,
        shown: torch.Tensor | None = None,
        latent: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """float64[batch]: log-probability of each response given its prompt, whose tokens' sum float32 would round.

        For the users of whom `shown` tells, or whose latents those are (see Film); without either, unmodulated.
        """
        self.modulation = None
        if self.film is not None:
            latent = self.film.latent(shown) if latent is None and shown is not None else latent
            self.modulation = None if latent is None else self.film.modulation(latent)
        first = int(response.int().argmax(1).min())  # nothing before it is asked for
        target, asked = ids[:, first:], response[:, first:]
        logits = self.lm(ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=ids.shape[1] - first + 1)
        each = -cross_entropy(logits.logits[:, :-1][asked].float(), target[asked], reduction="none")
        return each.new_zeros(len(ids), dtype=torch.float64).index_add(0, asked.nonzero()[:, 0], each.double())

    @contextlib.contextmanager
    def acting_for(self, latent: torch.Tensor | None) -> Iterator[None]:
        """Within it the model alone (`lm`) acts for the users with those latents float32[batch, width]."""
        self.modulation = None if self.film is None or latent is None else self.film.modulation(latent)
        try:
            yield
        finally:
            self.modulation = None

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that training moves, by name."""
        return {name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}


def _modulation_hook(policy: weakref.ref[Policy], place: int, block: nn.Module, given: tuple, output: Any) -> Any:
    """The forward hook of one block: modulates its output while its policy lives."""
    return output if (held := policy()) is None else held.modulate_block(place, output)


class Film(nn.Module):
    """Reads a user from the mean of his context's features, winner less loser, and says how blocks are modulated.

    A linear map of that mean, a layer norm, an MLP: the latent. A linear map of the latent, zero at first, so that
    training begins at the unmodulated model.
    """

    def __init__(self, features: int, width: int, n_blocks: int, hidden: int) -> None:
        super().__init__()
        self.shape = (n_blocks, 2, hidden)
        self.weigh = nn.Linear(features, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.out = nn.Linear(width, n_blocks * 2 * hidden)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def latent(self, shown: torch.Tensor) -> torch.Tensor:
        """float32[n, width] from mean gaps float32[n, features]."""
        return self.mlp(self.norm(self.weigh(shown)))

    def modulation(self, latent: torch.Tensor) -> torch.Tensor:
        """float32[n, blocks, 2, hidden] from latents float32[n, width]: scale less one, and shift."""
        return self.out(latent).unflatten(1, self.shape)


def without_peft(model: CausalLM) -> CausalLM:
    """The model without PEFT's wrapping around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def transformer_blocks(model: CausalLM) -> nn.ModuleList:
    """The model's blocks, in order. ValueError where they are not found."""
    decoder = without_peft(model).get_decoder()
    for name in ("layers", "h"):  # h: GPT-2 and its kin
        if isinstance(found := getattr(decoder, name, None), nn.ModuleList):
            return found
    raise ValueError(f"the blocks of {type(decoder).__name__} were not found: dpo without recompute needs none")


def gpu_autocast() -> contextlib.AbstractContextManager:
    """bfloat16 on a GPU; on a CPU nothing, where it would be slower."""
    return torch.autocast("cuda", torch.bfloat16) if torch_device().type == "cuda" else contextlib.nullcontext()


def response_log_probs(
    policy: Policy, tokens: ItemTokens, rows: np.ndarray, latent: torch.Tensor | None = None
) -> torch.Tensor:
    """float64[n]: log-probability of the response of item rows[i] for a user with latent[i]; workers share the batches."""
    found = torch.zeros(len(rows), dtype=torch.float64)
    limit = MAX_POLICY_TOKENS if torch_device().type == "cuda" else MAX_CPU_POLICY_TOKENS
    with torch.inference_mode(), gpu_autocast():
        for turn, some in enumerate(batches_by_length(tokens.length[rows], limit)):
            if turn % parallel.worker_count() == parallel.worker_rank():
                whose = None if latent is None else latent[torch.from_numpy(some)].to(torch_device())
                found[some] = policy(*tokens.padded_batch(rows[some], torch_device()), latent=whose).double().cpu()
    return parallel.sum_over_workers(found)


@lru_cache(2)  # a trial asks a dozen times; Items are hashed by identity
def reference_log_probs(
    items: Items, model: LanguageModel, store: Store, max_response_tokens: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """float64[items]: log-probability of each response under the model as it is, found once and kept in the store."""
    text = hashlib.sha256()
    for name in ("prompt", "response"):
        for chunk in items.known_text[name].cast(pa.large_string()).combine_chunks().buffers()[1:]:
            text.update(chunk)
    identity = model.identity | {
        "text": text.hexdigest(),
        "cut": max_response_tokens,
        "dtype": str(dtype),
        "device": torch_device().type,
    }
    key = identity_hash(identity)
    kept = store.read_manifest("references", key)
    if parallel.first_workers_value(kept is not None):
        kept = kept or store.read_manifest("references", key)
        if kept is None:
            raise ValueError(
                f"the log-probabilities {key} of another worker are not in this worker's store {store.root}"
            )
        return torch.from_numpy(safetensors.numpy.load(store.read_verified(kept, "log_probs.safetensors"))["log_probs"])
    tokens = tokenise_items(items, model, store, max_response_tokens)
    found = response_log_probs(
        Policy(load_language_model(model.model_folder(store), dtype)), tokens, np.arange(len(items))
    )
    if parallel.worker_rank() == 0:
        content = safetensors.numpy.save({"log_probs": found.numpy()})
        store.commit("references", key, identity, {"log_probs.safetensors": content}, {})
    return found
