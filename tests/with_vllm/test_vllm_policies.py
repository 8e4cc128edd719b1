"""A policy saved by `manyminds show KEY --save DIR` has the same log-probabilities in vLLM, loaded as instructed."""

import os

import numpy as np
import pyarrow as pa
import pytest

from harness.data import TEXT_SCHEMA, Items, Pairs, Panel
from harness.learning import policy
from harness.method import Run
from harness.models import small
from harness.registry import make_instance
from harness.sources.text_world import PROMPTS, write_response
from harness.store.store import Store

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM takes most of the memory by default
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_vllm_says_what_the_policy_says(tmp_path, tune):
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    run = Run(0, store=Store(tmp_path / "store").open())
    small.build_small_model(tmp_path / "base", steps=0)
    prompts = [p for p in PROMPTS[:8] for _ in range(2)]
    text = pa.table([prompts, [write_response(p, i) for i, p in enumerate(prompts)]], schema=TEXT_SCHEMA)
    left, user = np.arange(0, 16, 2, dtype=np.int32), np.repeat(np.arange(2, dtype=np.int32), 4)
    label = np.ones(8, dtype=np.float32)
    train = Pairs(user, np.arange(2, dtype=np.int32), left, left + 1, label, Items(None, text))
    made = make_instance(
        "method", "dpo", {"model": f"transformers:{tmp_path}/base", "tune": tune, "steps": 5, "rate": 1e-2}
    )
    made = make_instance("method", "dpo", {**vars(made), "batch": 4})
    state = made.fit(train, Panel(train.first(1), train), run)
    tokens, reference = made.tokens_and_reference(train.items, run.store)
    with made.open_predictor(state, run) as at_work:
        told = at_work.export(state, tmp_path / "policy")
        wanted = policy.response_log_probs(at_work.model, tokens, np.arange(16))
    assert ("LoRARequest" in told) == (tune == "lora")

    assert (wanted - reference).abs().min() > 0.1  # training has changed the model
    lora = tune == "lora"
    options = {"enable_lora": True, "max_lora_rank": made.rank} if lora else {}
    llm = LLM(
        str(tmp_path / ("base" if lora else "policy")),
        dtype="float32",
        enforce_eager=True,
        enable_chunked_prefill=False,
        max_num_batched_tokens=8192,
        **options,
    )
    read = [tokens.ids[tokens.start[i] : tokens.start[i + 1]].tolist() for i in range(16)]
    out = llm.generate(
        [{"prompt_token_ids": ids} for ids in read],
        SamplingParams(max_tokens=1, prompt_logprobs=0),
        use_tqdm=False,
        lora_request=LoRARequest("policy", 1, str(tmp_path / "policy")) if lora else None,
    )
    for i, request in enumerate(out):
        first = tokens.response_start[i] - tokens.start[i]
        said = [request.prompt_logprobs[k][read[i][k]].logprob for k in range(first, len(read[i]))]
        assert sum(said) == pytest.approx(float(wanted[i]), abs=1e-2)
