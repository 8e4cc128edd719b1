"""Policy training beside TRL's DPOTrainer, and the effects of caching, like lengths and FiLM: small LM, one thread.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_policies.py

Prints CPU seconds, not wall-clock time: the median of rounds in which all variants take turns. TRL trains in the same
batches, with cached reference log-probabilities. Peak memory (Linux) is the increase within a separate process.
"""

import ctypes
import logging
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch
from datasets import Dataset, disable_progress_bars
from threadpoolctl import threadpool_limits
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from harness import policy_module
from harness.data import TEXT_SCHEMA, Items
from harness.learning.dpo_training import TrainingSettings, TrainingStep, train_policy
from harness.method import Run
from harness.models import small
from harness.policy_module import Film, Policy, blocks, log_probs
from harness.registry import make_instance
from harness.sources.text_world import PROMPTS, write_response
from harness.store.store import Store

STEPS = 12  # per round
BATCH = 16  # pairs per step
ROUNDS = 3
WINDOW = 16 * BATCH  # pairs sorted by length, as in harness/methods/dpo.py
FEATURES = 64  # features of a context pair
BETA = 0.05


def texts(n: int) -> Items:
    """Return pairs i of items 2 i and 2 i + 1, two responses of the text world to one prompt."""
    rng = np.random.default_rng(0)
    prompts = [PROMPTS[i] for i in rng.integers(len(PROMPTS), size=n).repeat(2)]
    responses = [write_response(p, int(s)) for p, s in zip(prompts, rng.integers(1 << 30, size=2 * n), strict=True)]
    return Items(text=pa.table([prompts, responses], schema=TEXT_SCHEMA))


def steps(pairs: np.ndarray, shown: bool = False) -> Callable[[int], TrainingStep]:
    """Return training steps of BATCH of those pairs, with left preferred and a random context."""
    mean = np.random.default_rng(1).normal(size=(BATCH, FEATURES)).astype(np.float32) if shown else None

    def step_at(step: int) -> TrainingStep:
        rows = pairs[step * BATCH : (step + 1) * BATCH]
        return TrainingStep(2 * rows, 2 * rows + 1, np.ones(BATCH, dtype=np.float32), mean)

    return step_at


def theirs(model, folder: Path, items: Items, pairs: np.ndarray) -> DPOTrainer:
    """Return TRL's trainer for those pairs in that order, with precomputed reference log-probabilities."""
    prompt, response = (items.text[name].to_pylist() for name in ("prompt", "response"))
    rows = [
        {
            "prompt": [{"role": "user", "content": prompt[2 * pair]}],
            "chosen": [{"role": "assistant", "content": response[2 * pair]}],
            "rejected": [{"role": "assistant", "content": response[2 * pair + 1]}],
        }
        for pair in pairs
    ]
    settings = DPOConfig(
        str(folder / "trl"),
        beta=BETA,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        max_steps=STEPS,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "lm")
    trainer = DPOTrainer(model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.log = lambda *_: None
    return trainer


def peak(work: Callable[[], object]) -> float:
    """Return the peak increase of memory in MB while `work` runs in a separate process."""

    def child() -> None:
        ctypes.CDLL(None).malloc_trim(0)  # memory freed by earlier work would be reused unseen
        before = psutil.Process().memory_info().rss
        work()
        say.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)

    heard, say = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return heard.recv() / 1e6


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main(folder: Path) -> None:
    store = Store(folder / "store").open()
    small.build_small_model(folder / "lm", steps=0)
    made = {
        tune: make_instance("method", "dpo", {"model": f"transformers:{folder / 'lm'}", "tune": tune})
        for tune in ("full", "lora")
    }
    items = texts(STEPS * BATCH)
    lm = made["full"].lm
    tokens, reference = (
        policy_module.tokenise_items(items, lm, store),
        policy_module.reference_log_probs(items, lm, store),
    )
    length = tokens.length.reshape(-1, 2)
    random = np.arange(len(length))  # the pairs are in random order
    alike = random[np.lexsort((length.max(1), random // WINDOW))]
    base, opened = (
        Policy(policy_module.load_language_model(lm.model_folder(store))),
        {tune: each.untrained_policy(0, store) for tune, each in made.items()},
    )
    model = made["full"].untrained_policy(0, store).lm
    film = Policy(model, Film(FEATURES, 64, len(blocks(model)), model.config.hidden_size))

    def ours(policy_module: Policy, step_at: Callable[[int], TrainingStep]) -> Callable[[], object]:
        rates = {"lm": 1e-6, "film": 1e-6}
        return lambda: train_policy(
            policy_module, tokens, reference, step_at, TrainingSettings(BETA, STEPS, rates), run=Run(0, store=store)
        )

    def uncached(step: int) -> TrainingStep:
        drawn = steps(alike)(step)
        log_probs(base, tokens, np.concatenate([drawn.left, drawn.right]))
        return drawn

    ways = {
        "FiLM": ours(film, steps(alike, shown=True)),
        "ours, full": ours(opened["full"], steps(alike)),
        "TRL, full": theirs(made["full"].untrained_policy(0, store).lm, folder, items, alike).train,
        "ours, LoRA": ours(opened["lora"], steps(alike)),
        "TRL, LoRA": theirs(made["lora"].untrained_policy(0, store).lm, folder, items, alike).train,
        "reference every step": ours(opened["full"], uncached),
        "random batches": ours(opened["full"], steps(random)),
    }
    taken = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, work in list(ways.items())[:: 1 if turn % 2 else -1]:
            took = seconds(work)
            if turn:  # the first round warms up
                taken[name].append(took)
    print(f"{STEPS} steps of {BATCH} pairs, {length.sum():,} tokens; median of {ROUNDS} rounds on one thread")
    median = {name: float(np.median(each)) for name, each in taken.items()}
    for name, work in ways.items():
        spread = f"{min(taken[name]):.2f} to {max(taken[name]):.2f}"
        print(
            f"  {name:21} {median[name]:6.2f} s ({spread}) {length.sum() / median[name]:8,.0f} tokens/s, "
            f"peak {peak(work):5.0f} MB"
        )
    for name, over, under in (
        ("TRL's time over ours, full", "TRL, full", "ours, full"),
        ("TRL's time over ours, LoRA", "TRL, LoRA", "ours, LoRA"),
        ("reference every step over cached (aim: 1.25)", "reference every step", "ours, full"),
        ("with FiLM over without (aim: below 1.10)", "FiLM", "ours, full"),
        ("random batches over like lengths", "random batches", "ours, full"),
    ):
        print(f"  {name}: {np.median(np.divide(taken[over], taken[under])):.2f}")  # the median of the rounds' ratios


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", FutureWarning)
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"  # TRL's progress bars
    with threadpool_limits(1), tempfile.TemporaryDirectory() as place:
        main(Path(place))
