"""Generation: Ray Data against a bare loop over the same engine, and a second run.

    python tests/benchmarks/bench_generate.py                      engine transformers
    .venv-vllm/bin/python tests/benchmarks/bench_generate.py vllm  engine vllm

Uses the project's small model, untrained unless --model names another, whose samples have all 64 tokens. Ratios are
within one run; other work on the machine makes them unreliable.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["RAY_worker_niceness"] = "0"  # worker and bare loop then have the same priority
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa

from harness.inference import generate
from harness.inference.jobs import missing_blocks
from harness.models import small
from harness.on_ray.inference import make_on_ray
from harness.sources.text_world import PROMPTS
from harness.store.store import Store


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("engine", nargs="?", default="transformers", choices=["transformers", "vllm"])
    options.add_argument("--model", default="")
    options.add_argument("--prompts", type=int, default=256)
    options.add_argument("--n", type=int, default=8)
    options.add_argument("--rounds", type=int, default=2)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not asked.model:
            small.build_small_model(Path(folder, "small"), steps=0)
        name = f"{asked.engine}:{asked.model or f'{folder}/small'}?max_tokens=64"
        prompts = [f"{PROMPTS[i % len(PROMPTS)]} ({i})" for i in range(asked.prompts)]
        table = generate.generator_inputs(pa.table({"system": pa.nulls(len(prompts), pa.string()), "prompt": prompts}))
        job = generate.generate_job(name, asked.n, lambda: [table], Store(f"{folder}/store").open())
        job.recipe.check()
        began = time.perf_counter()
        worker = job.recipe.start()  # in this process, so started once
        worker(job.recipe.prepare(table.slice(0, 1))[0])  # loads the tokenizer and warms up, as the start on Ray does
        seconds = {"  its start": [time.perf_counter() - began]}
        for number in range(asked.rounds):
            rows = job.cached_rows(Store(f"{folder}/bare{number}").open())
            began, tokens = time.perf_counter(), 0
            for block in missing_blocks(job.batches(), rows.build_index(), job.recipe.rows_per_block):
                tokens += worker(job.recipe.prepare(block)[0])[2]["tokens"]
            seconds.setdefault("bare loop", []).append(time.perf_counter() - began)
            rows = job.cached_rows(Store(f"{folder}/ray{number}").open())
            found = make_on_ray(rows, job.recipe, job.batches(), workers=1)
            assert found["rows"] == asked.prompts and tokens == sum(facts["tokens"] for facts in rows.block_facts())
            seconds.setdefault("Ray, 1 worker, once started", []).append(found["seconds"])
            seconds.setdefault("  its start on Ray", []).append(found["start_seconds"])
            began = time.perf_counter()
            assert make_on_ray(rows, job.recipe, job.batches(), workers=1)["rows"] == 0
            seconds.setdefault("  a second run", []).append(time.perf_counter() - began)
        again = sum(facts["same"] for facts in rows.block_facts()), sum(facts["again"] for facts in rows.block_facts())
    bare = statistics.median(seconds["bare loop"])
    print(f"{asked.prompts} prompts x {asked.n} by {name}, {tokens} tokens, {tokens / bare:.0f} a second in the loop")
    for what, all_ in seconds.items():
        share = "" if what.startswith("  ") else f"{bare / statistics.median(all_):8.2f} of the bare loop's throughput"
        print(f"  {what:32}{statistics.median(all_):8.2f} s ({min(all_):.2f}-{max(all_):.2f}){share}")
    print(f"  sampled a second time alike: {again[0]} of {again[1]} prompts")


if __name__ == "__main__":
    main()
