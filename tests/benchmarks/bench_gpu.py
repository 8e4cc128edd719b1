"""Encoding and policy training on a GPU: Qwen2 with 0.5 to 7 billion random parameters, which are as fast as trained.

    python tests/benchmarks/bench_gpu.py                 on a machine with a GPU; 16 GB of disk for the 7B
    python tests/benchmarks/bench_gpu.py policies        or `encoding`: one of the two
    python tests/benchmarks/bench_gpu.py --tiny          a test of this script on a CPU; its figures mean nothing

Encoding, for each size: tokens per second of the model alone, and of the code of `manyminds encode` without and with
Ray; the share of the card's dense bf16 peak, counting 2 operations per parameter and token (a lower bound, as attention
is not counted); and how far a text's bf16 vector depends on the other texts of its batch.

Policies: tokens per second of DPO by harness/learning/dpo_training.py with Qwen's whole vocabulary, with LoRA on a
frozen bf16 model, and with FiLM; of reference log-probabilities; and peak memory. Operations per parameter and token:
6 if trained, 4 if frozen, 2 without gradients; the head's count for response tokens only.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModel, AutoModelForCausalLM, Qwen2Config

from harness.inference import encode
from harness.inference.jobs import make_in_process, missing_blocks
from harness.inference.tokens import token_lists
from harness.learning import policy
from harness.learning.dpo_training import TrainingSettings, TrainingStep, train_policy
from harness.learning.policy import Film, ItemTokens, Policy, add_lora, response_log_probs, transformer_blocks
from harness.method import Run
from harness.models import small
from harness.models.engine import open_engine
from harness.models.sampling import pad_tokens
from harness.models.tokens import batches_by_length, token_counts
from harness.on_ray.inference import make_on_ray
from harness.store.store import Store

PEAK = {  # dense bf16 operations a second, of NVIDIA's data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
SIZES = {  # from the published Qwen2 and Qwen2.5 configurations
    "0.5B": dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
    ),
    "7B": dict(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    ),
}
TINY = {
    "tiny": dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
}
CONTEXT = 1024
POLICIES = {
    "0.5B": SIZES["0.5B"],
    "2B": dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8
    ),
}
VOCABULARY = 151_936  # Qwen's; its float32 logits take most of a batch's memory
BATCH = 32  # pairs per step
FEATURES = 1024  # features of a context pair


def build(folder: Path, size: dict, device: str) -> int:
    """Save random weights and the small model's tokenizer; return the number of parameters without the embedding."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        config = Qwen2Config(vocab_size=2048, max_position_embeddings=CONTEXT, **size)
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer = small.train_tokenizer(0)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()


def mixed_texts(count: int) -> pa.Table:
    """Return texts of lognormal lengths with a median of about 200 tokens."""
    rng = np.random.default_rng(0)
    words = np.array(
        [
            "the",
            "of",
            "and",
            "to",
            "in",
            "that",
            "it",
            "is",
            "was",
            "for",
            "on",
            "are",
            "as",
            "with",
            "they",
            "be",
            "at",
            "one",
            "have",
            "this",
            "from",
            "by",
            "hot",
        ]
    )
    long = np.clip(np.exp(rng.normal(np.log(100), 0.8, count)), 5, 500).astype(int)
    return pa.table({"response": [f"{i} " + " ".join(rng.choice(words, n)) for i, n in enumerate(long)]})


def measure(what: str, size: dict, count: int, folder: Path, device: str, peak: float) -> None:
    parameters = build(folder / what, size, device)
    name = f"transformers:{folder / what}?dtype=bfloat16&max_length={CONTEXT}"
    texts = mixed_texts(count)
    job = encode.encode_job(name, lambda: [texts], Store(f"{folder}/store").open())
    recipe = job.recipe
    tokens = token_lists(recipe.prepare(next(iter(job.batches())))[0]["tokens"])
    length = token_counts(tokens)
    engine = open_engine("transformers", folder / what, "embed", dtype="bfloat16", max_length=CONTEXT)

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    batches = batches_by_length(length, engine.tokens)
    ready = [pad_tokens([tokens[i] for i in rows], engine.device) for rows in batches]
    seconds = {}
    with torch.inference_mode():
        for _ in range(2):  # the first warms up
            began = now()
            for ids, mask in ready:
                engine.model(ids, attention_mask=mask).last_hidden_state[:, 0].float().cpu()
            seconds["model alone, batches on the card"] = now() - began
    together = engine.embed(tokens[:512], "mean")
    engine.tokens = 1  # every text alone in a batch
    alone = engine.embed(tokens[:512], "mean")
    del engine, ready
    if device == "cuda":
        torch.cuda.empty_cache()

    worker, began = recipe.start(), now()
    rows = job.cached_rows(Store(folder / f"{what}-bare").open())
    for block in missing_blocks(job.batches(), rows.build_index(), recipe.rows_per_block):
        worker(recipe.prepare(block)[0])
    seconds["bare loop, tokenising included"] = now() - began
    del worker
    if device == "cuda":
        torch.cuda.empty_cache()
    seconds["--local, committed"] = make_in_process(rows, recipe, job.batches())["seconds"]
    if device == "cuda":
        torch.cuda.empty_cache()
    found = make_on_ray(job.cached_rows(Store(folder / f"{what}-ray").open()), recipe, job.batches())
    seconds["Ray, once started"] = found["seconds"]

    bare = seconds["bare loop, tokenising included"]
    print(
        f"{what}: {parameters / 1e9:.2f}e9 parameters, {count} texts, {length.sum()} tokens; start on Ray {found['start_seconds']:.0f} s"
    )
    for way, took in seconds.items():
        rate = length.sum() / took
        share = f"{2 * parameters * rate / peak:8.1%} of the card's peak" if peak else ""
        print(f"  {way:34}{took:8.2f} s {rate:12.0f} tokens/s{share}{bare / took:8.2f} of the bare loop")
    cosine = (together * alone).sum(1) / np.linalg.norm(together, axis=1) / np.linalg.norm(alone, axis=1)
    print(f"  bf16, in a batch and alone: cosine distance at most {(1 - cosine).max():.1e} over {len(cosine)} texts")


def random_pairs(pairs: int, vocabulary: int) -> ItemTokens:
    """Return pairs i of items 2 i, 2 i + 1; prompts of 20 to 200 tokens, responses of lognormal lengths about 200."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(20, 200, pairs).repeat(2)
    response = np.clip(np.exp(rng.normal(np.log(200), 0.6, 2 * pairs)), 10, 600).astype(int)
    start = np.concatenate([[0], np.cumsum(prompt + response)])
    return ItemTokens(rng.integers(vocabulary, size=start[-1], dtype=np.int32), start, start[:-1] + prompt)


def train(what: str, size: dict, steps: int, vocabulary: int, peak: float) -> None:
    device = policy.torch_device()
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=vocabulary, max_position_embeddings=CONTEXT, tie_word_embeddings=True, **size)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    head = base.get_input_embeddings().weight.numel()
    body = sum(weight.numel() for weight in base.parameters()) - head
    tokens = random_pairs(steps * BATCH, vocabulary)
    pairs = np.argsort(tokens.length.reshape(-1, 2).max(1)).reshape(steps, BATCH)
    pairs = np.random.default_rng(0).permutation(pairs)
    shown = np.random.default_rng(1).normal(size=(BATCH, FEATURES)).astype(np.float32)
    answers = (tokens.start[1:] - tokens.response_start).sum()
    reference, taken = torch.zeros(len(tokens.length), dtype=torch.float64), {}
    print(f"{what}: {(body + head) / 1e9:.2f}e9 parameters, {steps} steps of {BATCH} pairs, {len(tokens.ids)} tokens")

    def timed(name: str, operations: int, work) -> None:
        for _ in range(2):  # the first warms up
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()  # ends with a copy to the CPU, which waits for the GPU
            taken[name] = time.perf_counter() - began
        share = f"{operations * (body * len(tokens.ids) + head * answers) / taken[name] / peak:8.1%}" if peak else ""
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:8.1f} GiB" if device.type == "cuda" else ""
        print(f"  {name:34}{taken[name]:8.2f} s {len(tokens.ids) / taken[name]:12.0f} tokens/s{share}{memory}")

    def tune(opened: Policy) -> None:
        def step_at(step: int) -> TrainingStep:
            label = np.ones(BATCH, dtype=np.float32)
            return TrainingStep(2 * pairs[step], 2 * pairs[step] + 1, label, None if opened.film is None else shown)

        rates = {"lm": 1e-4, "film": 1e-4}
        train_policy(
            opened,
            tokens,
            reference,
            step_at,
            TrainingSettings(0.05, steps, rates),
            run=Run(0),
        )

    timed("reference log-probabilities", 2, lambda: response_log_probs(Policy(base), tokens, np.arange(len(reference))))
    lora = add_lora(base, 16, 0)
    timed("LoRA", 4, lambda: tune(Policy(lora)))
    film = Film(FEATURES, 64, len(transformer_blocks(lora)), config.hidden_size)
    modulated = Policy(lora, film).to(device)
    timed("LoRA with FiLM", 4, lambda: tune(modulated))
    print(f"  FiLM adds {taken['LoRA with FiLM'] / taken['LoRA'] - 1:.1%} (aim: at most 10 %)")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("what", nargs="?", choices=["encoding", "policies"], help="default: both")
    options.add_argument("--tiny", action="store_true", help="on a CPU, to test this script")
    options.add_argument("--texts", type=int, default=0, help="default: 20000 for 0.5B, 6000 for 7B")
    asked = options.parse_args()
    if asked.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured (--tiny tests the script itself)")
    device, peak = "cpu", 0.0
    if not asked.tiny:
        device, card = "cuda", torch.cuda.get_device_name()
        known = next((name for name in PEAK if set(name.split()) <= set(card.replace("-", " ").split())), None)
        peak = PEAK.get(known, 0.0)
        print(f"{card}, " + (f"dense bf16 peak {peak / 1e12:.0f}e12/s" if peak else "peak unknown: add it to PEAK"))
    if asked.what != "encoding":
        for what, size in (TINY if asked.tiny else POLICIES).items():
            train(what, size, *((2, 2048) if asked.tiny else (20, VOCABULARY)), peak)
    if asked.what != "policies":
        with tempfile.TemporaryDirectory() as folder:
            for what, size in (TINY if asked.tiny else SIZES).items():
                count = asked.texts or {"tiny": 60, "0.5B": 20_000, "7B": 6_000}[what]
                measure(what, size, count, Path(folder), device, peak)


if __name__ == "__main__":
    main()
