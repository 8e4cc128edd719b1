"""vLLM's own server behind `openai:`: its log-odds are those of the model, and its samples are texts."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.inference.answer import answer_job, question_table, stored_log_odds
from harness.inference.generate import generate_job, generator_inputs, stored_candidates
from harness.inference.jobs import make_in_process
from harness.inference.likelihood import asked_likelihoods
from harness.models import small
from harness.models.inputs import open_tokenizer, render_prompt
from harness.models.on_endpoint import TOP_LOGPROBS, log_odds_of_choice
from harness.sources.text_world import PROMPTS
from harness.store.store import Store

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small.build_small_model(folder, steps=20)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """The address of a server of the small model; starting it takes about a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--enforce-eager", "--served-model-name", "small", "--host", "127.0.0.1"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, *options], env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2)
            break
        except OSError:
            assert process.poll() is None, "the server has ended"
            time.sleep(1)
    yield f"{url}/v1"
    process.terminate()
    process.wait(60)


def run(job, store):
    return make_in_process(job.cached_rows(store), job.recipe, job.batches())


def test_a_vllm_server_judges_and_writes(server, folder, tmp_path):
    store, name = Store(tmp_path / "store").open(), f"openai:small?base_url={server}"
    prompts, words = PROMPTS[:6], ("On", "Per")
    job = answer_job(name, words, lambda: [question_table([None] * 6, prompts)], store)
    job.recipe.check()
    assert run(job, store)["errors"] == 0
    found = stored_log_odds(name, [None] * 6, prompts, words, store)
    tokenizer = open_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = []
    for prompt in prompts:
        with torch.no_grad():
            logp = model(torch.tensor([render_prompt(tokenizer, None, prompt)])).logits[0, -1].log_softmax(0)
        top = [{"token": tokenizer.decode(int(i)), "logprob": float(logp[i])} for i in logp.topk(TOP_LOGPROBS).indices]
        wanted.append(log_odds_of_choice({"logprobs": {"content": [{"top_logprobs": top}]}}, words))
    np.testing.assert_allclose(found, wanted, atol=0.01)
    writer = name + "&max_tokens=12"
    table = generator_inputs(question_table([None] * 6, prompts).select(["system", "prompt"]))
    assert run(generate_job(writer, 2, lambda: [table], store), store)["errors"] == 0
    assert all(len(row) == 2 and all(row) for row in stored_candidates([None] * 6, prompts, writer, 2, store))
    assert run(generate_job(writer, 2, lambda: [table], store), store)["rows"] == 0


def test_a_vllm_server_reads(server, folder, tmp_path):
    """Log-likelihoods of texts that begin with a token of their own are those of the model's files."""
    store = Store(tmp_path / "store").open()
    texts = [" On baking bread.", " It is late.", " Per month, and not per year."]
    beginnings, leads = (
        ["People like this:\n", "Hm.\n", "People like this:\n"],
        ["Question: Why?\nAnswer:", "Answer:", "Answer:"],
    )
    found = []
    for name in (f"openai:small?base_url={server}", f"transformers:{folder}"):
        asked = asked_likelihoods(name, beginnings, leads, texts, store)
        assert run(asked.make_job(lambda asked=asked: [asked.missing()]), store)["errors"] == 0
        found.append(asked.stored())
    np.testing.assert_allclose(found[0], found[1], atol=0.01)
    assert np.ptp(found[0]) > 1
