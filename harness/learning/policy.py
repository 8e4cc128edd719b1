"""A causal language model as a policy: its tokens, LoRA terms, modulation by a user's latent, and log-probabilities."""

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
from harness.models.inputs import open_tokenizer, render_prompt, response_tokens
from harness.models.loading import loading_errors_as_user_errors
from harness.models.names import LanguageModel, parse_model
from harness.models.tokens import batches_by_length, check_architecture, context_length, model_config
from harness.store.store import Store, identity_hash

# max_length: tokens of a prompt and its response together; a shorter context of the model takes precedence.
POLICY_MODEL_DEFAULTS: dict[str, object] = {"max_length": 2048}
POLICY_RECIPE = 1  # raised whenever the same model would give other tokens or log-probabilities
# Tokens of a batch, padding included. With a vocabulary of 150,000, a batch's float32 logits take 5 GB of a GPU, and
# their gradients take as much again.
MAX_POLICY_TOKENS = 8192
MAX_CPU_POLICY_TOKENS = 2048  # larger batches do not fit the CPU's caches


def parse_policy_model(name: str) -> LanguageModel:
    """Parse the name of a language model. Raises UserError for a model that cannot be trained."""
    model = parse_model(name, POLICY_MODEL_DEFAULTS, POLICY_RECIPE, inputs=("prompt",))
    if model.engine != "transformers":
        raise UserError(f"{name!r}: policies are trained with transformers", f"transformers:{model.model}")
    if model["max_length"] < 2:
        raise UserError(f"{name!r}: max_length is below 2", "leave it out for 2048")
    return model


def canonical_policy_model(name: str) -> str:
    """Return the canonical name of a model; a method's identity records it in place of the field `model`."""
    return parse_policy_model(name).canonical_name


CausalLM = Any  # a transformers.PreTrainedModel, possibly wrapped by PEFT


def torch_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_run_store(run: Run) -> Store:
    """Return the run's store, which keeps language models and their results. Raises ValueError where there is none."""
    if run.store is None:
        raise ValueError("a policy needs a store: Run(seed, store=Store(folder))")
    return run.store


@dataclass(frozen=True, eq=False)
class ItemTokens:
    """Items as tokens: item i is ids[start[i]:start[i + 1]], its response is ids[response_start[i]:start[i + 1]]."""

    ids: np.ndarray  # int32[all tokens]
    start: np.ndarray  # int64[items + 1]
    response_start: np.ndarray  # int64[items]

    @property
    def length(self) -> np.ndarray:
        """int64[items]: the number of tokens of each item."""
        return np.diff(self.start)

    def padded_batch(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids int64, mask bool and response bool, each [rows, longest], padded on the right."""
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


# So few items are all read at once: seeds and panels then share them, and the model is loaded once, not for each panel.
WHOLE_BELOW = 1000


@lru_cache(2)  # a trial calls this a dozen times; Items are hashed by identity
def tokenise_items(items: Items, model: LanguageModel, store: Store, max_response_tokens: int = 0) -> ItemTokens:
    """Tokenise all items: the prompt by the model's chat template (or plain), the response, and the end-of-text token.

    A prompt loses its beginning where prompt and response together exceed the context. A response that is cut has no
    end-of-text token. Raises ValueError for empty
    responses, for responses longer than the context, and for a tokenizer without an end-of-text token, with which a
    policy would never learn to stop.
    max_response_tokens: longer responses are cut at their end; 0 cuts none.
    """
    tokenizer = open_tokenizer(model.model_folder(store))
    room = context_length(model_config(model.model_folder(store)), tokenizer, model["max_length"])
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{model.model}: the tokenizer has no end-of-text token, so no policy can learn to stop")
    prompts, responses = (items.known_text[name].to_pylist() for name in ("prompt", "response"))
    if empty := [i for i, text in enumerate(responses) if not text.strip()]:
        raise ValueError(f"{len(empty)} responses are empty, for example that of item {empty[0]}")
    before = {prompt: render_prompt(tokenizer, None, prompt) for prompt in set(prompts)}
    said = response_tokens(tokenizer, responses)
    after = [
        ids[:max_response_tokens] if 0 < max_response_tokens < len(ids) else [*ids, tokenizer.eos_token_id]
        for ids in said
    ]
    if long := [i for i, ids in enumerate(after) if len(ids) >= room]:
        raise ValueError(
            f"{len(long)} responses leave no room for a prompt in the context of {room} tokens, for example item {long[0]} "
            f"with {len(after[long[0]])} tokens: set max_response_tokens = {room // 2} to cut them, or use a model with a longer context"
        )
    heads = [before[prompt][-(room - len(ids)) :] for prompt, ids in zip(prompts, after, strict=True)]
    length = np.array([len(head) + len(ids) for head, ids in zip(heads, after, strict=True)])
    start = np.concatenate([[0], length.cumsum()])
    ids = np.fromiter(
        (t for pair in zip(heads, after, strict=True) for part in pair for t in part), np.int32, start[-1]
    )
    return ItemTokens(ids, start, start[:-1] + [len(head) for head in heads])


def load_language_model(folder: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Load the causal language model in a folder onto this process's device, without dropout."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    check_architecture(folder, "sample", "transformers")
    with loading_errors_as_user_errors(folder):
        opened: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    return opened.to(torch_device()).eval()


def add_lora(model: CausalLM, rank: int, seed: int) -> CausalLM:
    """Add trainable low-rank terms, zero at first, to every linear layer but the last (Hu et al. 2021)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(category=FutureWarning, action="ignore"):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


class Policy(nn.Module):
    """A language model, with an optional network `film` that modulates each of its blocks for a user.

    A modulated block's output o becomes (1 + scale) * o + shift (FiLM, Perez et al. 2017; Few-shot Steerable, eq. 23).
    """

    def __init__(self, model: CausalLM, film: Film | None = None) -> None:
        super().__init__()
        self.lm: CausalLM = model
        self.film = film
        self.modulation: torch.Tensor | None = None  # float32[batch, blocks, 2, hidden] of the current batch
        # The hooks hold the policy weakly. A strong reference would be a cycle, which keeps the model and its gradients
        # in memory until the garbage collector runs.
        me = weakref.ref(self)
        for place, block in enumerate(transformer_blocks(model) if film is not None else []):
            block.register_forward_hook(partial(_modulation_hook, me, place))

    def modulate_block(self, place: int, output):
        """Return a block's output modulated for the current batch; place: the block's index."""
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
        """Return float64[batch]: the log-probability of each response given its prompt (float32 would round the sum).

        ids, mask, response: see `ItemTokens.padded_batch`.
        shown: float32[batch, features], each user's mean gap, from which `film` computes the latent.
        latent: float32[batch, width], given instead of `shown`. With neither, the model is not modulated.
        """
        self.modulation = None
        if self.film is not None:
            latent = self.film.latent(shown) if latent is None and shown is not None else latent
            self.modulation = None if latent is None else self.film.modulation(latent)
        first = int(response.int().argmax(1).min())  # no logits are needed before the first response token
        target, asked = ids[:, first:], response[:, first:]
        logits = self.lm(ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=ids.shape[1] - first + 1)
        each = -cross_entropy(logits.logits[:, :-1][asked].float(), target[asked], reduction="none")
        return each.new_zeros(len(ids), dtype=torch.float64).index_add(0, asked.nonzero()[:, 0], each.double())

    @contextlib.contextmanager
    def acting_for(self, latent: torch.Tensor | None) -> Iterator[None]:
        """Modulate `lm` for the users with these latents float32[batch, width] within the context."""
        self.modulation = None if self.film is None or latent is None else self.film.modulation(latent)
        try:
            yield
        finally:
            self.modulation = None

    def trained_tensors(self) -> dict[str, torch.Tensor]:
        """Return the trainable tensors by name."""
        return {name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}


def _modulation_hook(policy: weakref.ref[Policy], place: int, block: nn.Module, given: tuple, output: Any) -> Any:
    """Modulate a block's output while its policy exists; the forward hook of that block."""
    return output if (held := policy()) is None else held.modulate_block(place, output)


class Film(nn.Module):
    """A network that encodes a user's mean context gap (winner minus loser) and computes the modulation of blocks.

    A linear map of that mean, a layer norm and an MLP give the latent. A linear map of the latent gives the modulation;
    that map is zero at first, so training begins at the unmodulated model.
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
        """Return the latent float32[n, width] of mean gaps float32[n, features]."""
        return self.mlp(self.norm(self.weigh(shown)))

    def modulation(self, latent: torch.Tensor) -> torch.Tensor:
        """Return float32[n, blocks, 2, hidden] for latents float32[n, width]: `scale` and `shift` as in `Policy`."""
        return self.out(latent).unflatten(1, self.shape)


def without_peft(model: CausalLM) -> CausalLM:
    """Return the model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def transformer_blocks(model: CausalLM) -> nn.ModuleList:
    """Return the model's transformer blocks in order. Raises ValueError where they are not found."""
    decoder = without_peft(model).get_decoder()
    for name in ("layers", "h"):  # h: GPT-2 and similar models
        if isinstance(found := getattr(decoder, name, None), nn.ModuleList):
            return found
    raise ValueError(
        f"the transformer blocks of {type(decoder).__name__} were not found; without them only dpo and dpo_dedicated "
        "work, with recompute = false"
    )


def gpu_autocast() -> contextlib.AbstractContextManager:
    """Return autocast to bfloat16 on a GPU, and a null context on a CPU, where bfloat16 would be slower."""
    return torch.autocast("cuda", torch.bfloat16) if torch_device().type == "cuda" else contextlib.nullcontext()


def response_log_probs(
    policy: Policy, tokens: ItemTokens, rows: np.ndarray, latent: torch.Tensor | None = None
) -> torch.Tensor:
    """Return float64[n]: log-probability of the response of item rows[i] for a user with latent[i].

    Each worker computes a part of the batches, and all workers return the whole result.
    """
    found = torch.zeros(len(rows), dtype=torch.float64)
    limit = MAX_POLICY_TOKENS if torch_device().type == "cuda" else MAX_CPU_POLICY_TOKENS
    with torch.inference_mode(), gpu_autocast():
        for turn, some in enumerate(batches_by_length(tokens.length[rows], limit)):
            if turn % parallel.worker_count() == parallel.worker_rank():
                whose = None if latent is None else latent[torch.from_numpy(some)].to(torch_device())
                found[some] = policy(*tokens.padded_batch(rows[some], torch_device()), latent=whose).double().cpu()
    return parallel.sum_over_workers(found)


@lru_cache(2)  # a trial calls this a dozen times; Items are hashed by identity
def reference_log_probs(
    items: Items,
    model: LanguageModel,
    store: Store,
    max_response_tokens: int = 0,
    dtype: torch.dtype = torch.float32,
    needed: tuple[int, ...] = (),
) -> torch.Tensor:
    """Return float64[items]: the log-probability of each response under the untrained model, cached in the store.

    needed: numbers of items; where they are fewer than half of more than WHOLE_BELOW, only these are computed, and the
    others are NaN.
    """

    def identity_of(rows: np.ndarray) -> dict[str, object]:
        known = items.known_text if len(rows) == len(items) else items.known_text.take(pa.array(rows))
        text = hashlib.sha256()
        for name in ("prompt", "response"):
            for chunk in known[name].cast(pa.large_string()).combine_chunks().buffers()[1:]:
                text.update(chunk)
        return model.identity | {
            "text": text.hexdigest(),
            "cut": max_response_tokens,
            "dtype": str(dtype),
            "device": torch_device().type,
        }

    rows = np.arange(len(items))
    identity = identity_of(rows)
    whole = store.read_manifest("references", identity_hash(identity)) is not None
    if len(items) > WHOLE_BELOW and 0 < 2 * len(needed) < len(items) and not parallel.first_workers_value(whole):
        rows = np.array(needed, dtype=np.int64)
        identity = identity_of(rows)
    key = identity_hash(identity)
    kept = store.read_manifest("references", key)
    if parallel.first_workers_value(kept is not None):
        kept = kept or store.read_manifest("references", key)
        if kept is None:
            raise ValueError(
                f"the reference log-probabilities {key} are in another worker's store but not in this one's, {store.root}"
            )
        stored = safetensors.numpy.load(store.read_verified(kept, "log_probs.safetensors"))["log_probs"]
        return _with_others_unknown(torch.from_numpy(stored), rows, len(items))
    tokens = tokenise_items(items, model, store, max_response_tokens)
    found = response_log_probs(Policy(load_language_model(model.model_folder(store), dtype)), tokens, rows)
    if parallel.worker_rank() == 0:
        content = safetensors.numpy.save({"log_probs": found.numpy()})
        store.commit("references", key, identity, {"log_probs.safetensors": content}, {})
    return _with_others_unknown(found, rows, len(items))


def _with_others_unknown(values: torch.Tensor, rows: np.ndarray, n: int) -> torch.Tensor:
    """Return float64[n] with the values at these rows, and NaN at all others."""
    if len(rows) == n:
        return values
    return torch.full((n,), torch.nan, dtype=torch.float64).index_copy_(0, torch.from_numpy(rows), values)
