"""Encoding on a GPU: Qwen2 of 0.5 and 7 billion parameters with random weights, which speed does not mind.

    python tests/benchmarks/bench_gpu.py                 on a machine with a GPU; 16 GB of disk for the 7B
    python tests/benchmarks/bench_gpu.py --tiny          its own logic, on a CPU: no figure means anything

For each: tokens a second of the model alone, of `manyminds encode`'s own path without and with Ray; the share of the
card's dense bf16 peak, counting 2 operations per parameter and token (attention's own left out, so it is a lower
bound); and how far a text's vector in bf16 moves with the batch it is in.
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
from transformers import AutoModel, Qwen2Config

from harness import encode, small_lm
from harness.blocks import make_on_ray
from harness.engines import batches, lengths, open_engine
from harness.rows import distinct, make_here
from harness.store import FOLDER, Store

PEAK = {  # dense bf16 operations a second, of NVIDIA's data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
SIZES = {  # of the published Qwen2 and Qwen2.5 configurations
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


def build(folder: Path, size: dict, device: str) -> int:
    """Random weights and the small model's tokenizer; returns the parameters that a token passes, the embedding's aside."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        config = Qwen2Config(vocab_size=2048, max_position_embeddings=CONTEXT, **size)
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer = small_lm.make_tokenizer(0)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()


def mixed_texts(count: int) -> pa.Table:
    """Of lognormal lengths, the median some 200 tokens."""
    rng = np.random.default_rng(0)
    words = np.array("the of and to in that it is was for on are as with they be at one have this from by hot".split())
    long = np.clip(np.exp(rng.normal(np.log(100), 0.8, count)), 5, 500).astype(int)
    return pa.table({"response": [f"{i} " + " ".join(rng.choice(words, n)) for i, n in enumerate(long)]})


def measure(what: str, size: dict, count: int, folder: Path, device: str, peak: float) -> None:
    parameters = build(folder / what, size, device)
    os.environ[FOLDER] = f"{folder}/store"
    name = f"transformers:{folder / what}?dtype=bfloat16&max_length={CONTEXT}"
    texts = mixed_texts(count)
    job = encode.job(name, lambda: [texts])
    recipe = job.recipe
    tokens = encode.as_lists(recipe.prepare(next(iter(job.batches())))[0]["tokens"])
    length = lengths(tokens)
    engine = open_engine("transformers", folder / what, "embed", dtype="bfloat16", max_length=CONTEXT)

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    ready = [engine.padded([tokens[i] for i in rows], torch.long) for rows in batches(length, engine.tokens)]
    seconds = {}
    with torch.inference_mode():
        for _ in range(2):  # the first warms up
            began = now()
            for ids, mask in ready:
                engine.model(ids, attention_mask=mask).last_hidden_state[:, 0].float().cpu()
            seconds["model alone, batches on the card"] = now() - began
    together = engine.embed(tokens[:512], "mean")
    engine.tokens = 1  # each alone
    alone = engine.embed(tokens[:512], "mean")
    del engine, ready
    if device == "cuda":
        torch.cuda.empty_cache()

    worker, began = recipe.start(), now()
    rows = job.rows(Store(folder / f"{what}-bare").open())
    for block in distinct(job.batches(), rows.index(), recipe.block):
        worker(recipe.prepare(block)[0])
    seconds["bare loop, tokenising included"] = now() - began
    del worker
    if device == "cuda":
        torch.cuda.empty_cache()
    seconds["--local, committed"] = make_here(rows, recipe, job.batches())["seconds"]
    if device == "cuda":
        torch.cuda.empty_cache()
    found = make_on_ray(job.rows(Store(folder / f"{what}-ray").open()), recipe, job.batches())
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


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--tiny", action="store_true", help="on a CPU, to test this script")
    options.add_argument("--texts", type=int, default=0, help="default: 20000 for 0.5B, 6000 for 7B")
    asked = options.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured (--tiny tests the script itself)")
    device, peak = "cpu", 0.0
    if not asked.tiny:
        device, card = "cuda", torch.cuda.get_device_name()
        known = next((name for name in PEAK if set(name.split()) <= set(card.replace("-", " ").split())), None)
        peak = PEAK.get(known, 0.0)
        print(f"{card}, " + (f"dense bf16 peak {peak / 1e12:.0f}e12/s" if peak else "peak unknown: add it to PEAK"))
    with tempfile.TemporaryDirectory() as folder:
        for what, size in (TINY if asked.tiny else SIZES).items():
            count = asked.texts or {"tiny": 60, "0.5B": 20_000, "7B": 6_000}[what]
            measure(what, size, count, Path(folder), device, peak)


if __name__ == "__main__":
    main()
