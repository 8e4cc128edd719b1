"""One face for language-model engines, `transformers` and `vllm`: samples, log-odds of two answers, vectors of texts.

Prompts come in as tokens, so that tokenisation can happen elsewhere. Nothing here knows of Ray.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.errors import Missing, Mistake

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = 16_384  # of a batch, padding and what is to come included: a 7B model's cache of them is 2 GB (grouped heads)
TOKENS_ON_CPU = 2_048  # of a batch that is read, not written: 16,384 fall out of the caches, and take a quarter longer
LONGEST = 2**20  # tokens of a context where nobody says: a tokenizer without a limit has 1e30
MANY = 128  # samples of a prompt in one vLLM request


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; it runs none of the folder's code."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def render(tokenizer: PreTrainedTokenizerBase, system: str | None, prompt: str) -> list[int]:
    """Tokens of a prompt up to where the model's answer begins.

    By the tokenizer's chat template, where it has one; a template that knows no system role gets the system line at
    the head of the prompt, as does plain text.
    """
    from jinja2 import TemplateError

    alone = f"{system}\n\n{prompt}" if system else prompt
    if tokenizer.chat_template is None:
        return tokenizer(f"{alone}\n")["input_ids"]
    roles = [("system", system), ("user", prompt)] if system else [("user", prompt)]
    try:
        return chat(tokenizer, roles)
    except TemplateError:
        return chat(tokenizer, [("user", alone)])


def chat(tokenizer: PreTrainedTokenizerBase, roles: list[tuple[str, str]]) -> list[int]:
    messages = [{"role": role, "content": content} for role, content in roles]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@dataclass(frozen=True)
class Sample:
    """What a model wrote. `mean_logprob`: per token, of the untempered model; the token that ends it counts too."""

    text: str
    finish_reason: Literal["stop", "length"]
    n_tokens: int
    mean_logprob: float


class Engine(ABC):
    """A language model at work. Prompts and texts are lists of token ids, at most `context_length` long."""

    context_length: int  # tokens of a prompt and its answer together

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        n: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 512,
    ) -> list[list[Sample]]:
        """n samples of each prompt, which end at the latest after `max_tokens` or where the context is full.

        A prompt's samples follow from its seed: seeds of different prompts must lie far apart (hash them), for vLLM
        draws sample k from seed + k. What else is in the batch changes no draw; it can change a probability by a
        rounding error, and so, rarely, a text. ValueError where a prompt leaves no room.
        """

    @abstractmethod
    def answer(self, prompts: Sequence[Sequence[int]], words: tuple[str, str]) -> np.ndarray:
        """float64[n]: log-odds of the first word against the second as what comes next.

        Of a word that is several tokens the first counts. Mistake where both words begin with the same one.
        """

    @abstractmethod
    def embed(self, texts: Sequence[Sequence[int]], pooling: Literal["last", "mean"] = "last") -> np.ndarray:
        """float32[n, d]: the last layer's vector of the last token, or the mean over all tokens; not normalised."""

    def check(self, prompts: Sequence[Sequence[int]], room: int) -> None:
        """ValueError for an empty prompt, or one that leaves less than `room` tokens of the context."""
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.context_length - room:
                raise ValueError(f"prompt {row} has {len(prompt)} tokens; the context has {self.context_length}")


def open_engine(
    engine: Literal["transformers", "vllm"],
    folder: Path,
    use: Literal["sample", "answer", "embed"],
    *,
    dtype: str = "float32",
    max_length: int | None = None,
    tensor_parallel: int = 1,
) -> Engine:
    """The model in a folder, loaded for one use; on the GPU where there is one.

    dtype is of weights and arithmetic: float32, bfloat16 or float16. max_length lowers the context length.
    tensor_parallel: GPUs that share the model, in vLLM. Missing where vLLM is not installed.
    """
    if engine == "vllm":
        return VLLM(folder, use, dtype, max_length, tensor_parallel)
    if tensor_parallel != 1:
        raise Mistake(f"transformers runs on one GPU, not on {tensor_parallel}", "engine vllm takes tensor_parallel")
    return Transformers(folder, use, dtype, max_length)


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
        self.tokenizer = tokenizer(folder)
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
        for rows in batches(np.repeat(length + room, n), self.tokens):
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
        for rows in batches(lengths(prompts), self.tokens):
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
        for rows in batches(lengths(texts), self.tokens):
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


class VLLM(Engine):
    """vLLM in this process: continuous batches, cached prefixes; several GPUs by tensor parallelism."""

    def __init__(self, folder: Path, use: str, dtype: str, max_length: int | None, tensor_parallel: int) -> None:
        if find_spec("vllm") is None:
            raise Missing(
                "vLLM is not installed here",
                "run from an environment that has it, which `make vllm` makes, or name the engine transformers",
            )
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process: it dies with it
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, where there is no GPU
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # OMP_NUM_THREADS holds, cores are not taken
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import torch
        from transformers import AutoConfig

        self.tokenizer = tokenizer(folder)
        self.context_length = context_length(
            AutoConfig.from_pretrained(folder, trust_remote_code=False), self.tokenizer, max_length
        )
        self.options = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": self.context_length,
            "tensor_parallel_size": tensor_parallel,
            "distributed_executor_backend": "mp" if tensor_parallel > 1 else "uni",
            "enable_prefix_caching": True,
        }
        if not torch.cuda.is_available():
            # Compiling takes longer than it saves; and vLLM 0.31 cannot read a seeded prompt in parts there.
            tokens = max(self.context_length, TOKENS)
            self.options |= {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
        self.pooling = None
        self.llm = None if use == "embed" else self.start()

    def start(self, **options):
        from vllm import LLM

        return LLM(**self.options, **options)

    def sample(self, prompts, seeds, n, temperature=1.0, top_p=1.0, max_tokens=512):
        from vllm import SamplingParams

        self.check(prompts, room=1)
        check_variety(n, temperature)
        asked = [(i, start) for i in range(len(prompts)) for start in range(0, n, MANY)]
        params = [
            SamplingParams(
                n=min(MANY, n - start),
                seed=int(seeds[i]) + start,  # sample k of a request draws from its seed + k
                temperature=temperature,
                top_p=top_p,
                max_tokens=min(max_tokens, self.context_length - len(prompts[i])),
                logprobs=0,  # of the tokens drawn alone, from the untempered model
                detokenize=False,
            )
            for i, start in asked
        ]
        samples = [[] for _ in prompts]
        outputs = self.llm.generate(tokens_of([prompts[i] for i, _ in asked]), params, use_tqdm=False)
        for (i, _), request in zip(asked, outputs, strict=True):
            for o in sorted(request.outputs, key=lambda o: o.index):
                stop = o.finish_reason == "stop"
                samples[i].append(as_sample(self.tokenizer, list(o.token_ids), stop, o.cumulative_logprob))
        return samples

    def answer(self, prompts, words):
        from vllm import SamplingParams

        self.check(prompts, room=1)
        first, second = first_tokens(self.tokenizer, words)
        params = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=[first, second], detokenize=False)
        outputs = self.llm.generate(tokens_of(prompts), params, use_tqdm=False)
        said = [request.outputs[0].logprobs[0] for request in outputs]
        return np.array([row[first].logprob - row[second].logprob for row in said], dtype=float)

    def embed(self, texts, pooling="last"):
        from vllm import PoolingParams
        from vllm.config import PoolerConfig

        self.check(texts, room=0)
        if self.pooling not in (None, pooling):
            raise Mistake(
                f"this vLLM engine pools by {self.pooling}, not {pooling}", "open another engine for the other pooling"
            )
        if self.llm is None:  # vLLM fixes the pooling at its start
            config = PoolerConfig(seq_pooling_type=pooling.upper())
            self.llm, self.pooling = self.start(runner="pooling", convert="embed", pooler_config=config), pooling
        params = PoolingParams(use_activation=False)  # which would normalise
        outputs = self.llm.encode(tokens_of(texts), params, pooling_task="embed", use_tqdm=False)
        return np.stack([request.outputs.data.float().numpy() for request in outputs])


def context_length(config, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int:
    """The smallest of what the model, its tokenizer and the user allow."""
    limits = [
        getattr(config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
        max_length,
    ]
    return int(min(limit for limit in (*limits, LONGEST) if limit))


def lengths(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """int64[n]"""
    return np.array([len(prompt) for prompt in prompts], dtype=np.int64)


def batches(length: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Rows of like lengths, longest first: each time as many as fit `tokens` once padded, and at least one."""
    order = np.argsort(-length, kind="stable")
    while len(order):
        batch, order = np.split(order, [max(1, tokens // length[order[0]])])
        yield batch


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


def check_variety(n: int, temperature: float) -> None:
    if n > 1 and temperature == 0:
        raise Mistake(f"at temperature 0 all {n} samples of a prompt are equal", "set temperature above 0, or n to 1")


def first_tokens(tokenizer: PreTrainedTokenizerBase, words: tuple[str, str]) -> tuple[int, int]:
    """The token each word begins with."""
    first, second = (tokenizer.encode(word, add_special_tokens=False)[0] for word in words)
    if first == second:
        raise Mistake(
            f"the answers {words[0]!r} and {words[1]!r} begin with the same token of this model",
            "choose answers that differ in their first letters, such as A and B",
        )
    return first, second


def as_sample(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: bool, logprob: float) -> Sample:
    text = tokenizer.decode(tokens[:-1] if stop else tokens, skip_special_tokens=True)
    return Sample(text, "stop" if stop else "length", len(tokens), logprob / len(tokens))


def tokens_of(prompts: Sequence[Sequence[int]]) -> list[dict]:
    """As vLLM takes them."""
    return [{"prompt_token_ids": [int(token) for token in prompt]} for prompt in prompts]
