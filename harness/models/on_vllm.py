"""Language models run by vLLM; the only module that imports it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from harness.errors import UnavailableError, UserError
from harness.models.base import MAX_BATCH_TOKENS, Engine, check_samples_can_differ, make_sample
from harness.models.inputs import open_tokenizer
from harness.models.tokens import context_length, first_tokens, model_config

MAX_SAMPLES_PER_REQUEST = 128  # samples of a prompt in one vLLM request


class VLLM(Engine):
    """An engine that runs vLLM in this process: continuous batches, cached prefixes, tensor parallelism over GPUs."""

    def __init__(self, folder: Path, use: str, dtype: str, max_length: int | None, tensor_parallel: int) -> None:
        if find_spec("vllm") is None:
            raise UnavailableError(
                "vLLM is not installed here",
                "run from an environment with vLLM, which `make vllm` creates, or use the engine transformers",
            )
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine runs in this process and ends with it
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, where there is no GPU
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # no cores are reserved; OMP_NUM_THREADS applies
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import torch

        self.tokenizer = open_tokenizer(folder)
        self.context_length = context_length(model_config(folder), self.tokenizer, max_length)
        self.options = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": self.context_length,
            "tensor_parallel_size": tensor_parallel,
            "distributed_executor_backend": "mp" if tensor_parallel > 1 else "uni",
            "enable_prefix_caching": True,
        }
        if not torch.cuda.is_available():
            # On a CPU, compiling costs more time than it saves, and vLLM 0.31 cannot prefill a seeded prompt in chunks.
            tokens = max(self.context_length, MAX_BATCH_TOKENS)
            self.options |= {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": tokens}
        self.pooling = None
        self.llm = None if use == "embed" else self.start_vllm()

    def start_vllm(self, **options):
        """Start vLLM with `self.options` and the given options."""
        from vllm import LLM

        return LLM(**self.options, **options)

    def sample(self, prompts, seeds, n, temperature=1.0, top_p=1.0, max_tokens=512):
        from vllm import SamplingParams

        self.check_prompt_lengths(prompts, room=1)
        check_samples_can_differ(n, temperature)
        asked = [(i, start) for i in range(len(prompts)) for start in range(0, n, MAX_SAMPLES_PER_REQUEST)]
        params = [
            SamplingParams(
                n=min(MAX_SAMPLES_PER_REQUEST, n - start),
                seed=int(seeds[i]) + start,  # sample k of a request draws from its seed + k
                temperature=temperature,
                top_p=top_p,
                max_tokens=min(max_tokens, self.context_length - len(prompts[i])),
                logprobs=0,  # of the drawn tokens only, at temperature 1
                detokenize=False,
            )
            for i, start in asked
        ]
        samples = [[] for _ in prompts]
        outputs = self.llm.generate(token_prompts([prompts[i] for i, _ in asked]), params, use_tqdm=False)
        for (i, _), request in zip(asked, outputs, strict=True):
            for o in sorted(request.outputs, key=lambda o: o.index):
                stop = o.finish_reason == "stop"
                samples[i].append(make_sample(self.tokenizer, list(o.token_ids), stop, o.cumulative_logprob))
        return samples

    def answer(self, prompts, words):
        from vllm import SamplingParams

        self.check_prompt_lengths(prompts, room=1)
        first, second = first_tokens(self.tokenizer, words)
        params = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=[first, second], detokenize=False)
        outputs = self.llm.generate(token_prompts(prompts), params, use_tqdm=False)
        said = [request.outputs[0].logprobs[0] for request in outputs]
        return np.array([row[first].logprob - row[second].logprob for row in said], dtype=float)

    def log_likelihood(self, beginnings, rest, scored):
        from vllm import SamplingParams

        prompts = [[*first, *then] for first, then in zip(beginnings, rest, strict=True)]
        self.check_prompt_lengths(prompts, room=1)  # vLLM writes a token more
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        outputs = self.llm.generate(token_prompts(prompts), params, use_tqdm=False)
        found = np.zeros(len(prompts))
        for row, (request, n) in enumerate(zip(outputs, scored, strict=True)):
            read = list(zip(prompts[row], request.prompt_logprobs, strict=True))[-int(n) :]
            found[row] = sum(said[token].logprob for token, said in read)
        return found

    def embed(self, texts, pooling="last"):
        from vllm import PoolingParams
        from vllm.config import PoolerConfig

        self.check_prompt_lengths(texts, room=0)
        if self.pooling not in (None, pooling):
            raise UserError(
                f"this vLLM engine pools by {self.pooling}, not {pooling}", "open another engine for the other pooling"
            )
        if self.llm is None:  # vLLM fixes the pooling at its start
            config = PoolerConfig(seq_pooling_type=pooling.upper())
            self.llm, self.pooling = self.start_vllm(runner="pooling", convert="embed", pooler_config=config), pooling
        params = PoolingParams(use_activation=False)  # an activation would normalise the vectors
        outputs = self.llm.encode(token_prompts(texts), params, pooling_task="embed", use_tqdm=False)
        return np.stack([request.outputs.data.float().numpy() for request in outputs])


def token_prompts(prompts: Sequence[Sequence[int]]) -> list[dict]:
    """Return prompts in the form that vLLM takes."""
    return [{"prompt_token_ids": [int(token) for token in prompt]} for prompt in prompts]
