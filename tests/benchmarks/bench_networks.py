"""CPU seconds of np_btl and vpl on one thread, beside baselines on a similar core, and of five seeds in one batch.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_networks.py
"""

import time

import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import linear, silu

from harness.method import Run
from harness.registry import make_instance

BASELINES = {  # CPU seconds: the authors' model with an in-memory sampler, or its slower port; and a good recipe
    "np_btl": (54, 10),
    "vpl": (84, 29),
}
RUNS = 3
SEEDS = 5


def cpu_seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def fits(name: str, task: str, steps: int) -> None:
    method, task = make_instance("method", name, {"steps": steps}), make_instance("task", task, {})
    splits = task.split(task.build(0), 0)
    seconds = min(
        cpu_seconds(lambda: method.fit(splits.train, splits.panels["validation"], Run(0))) for _ in range(RUNS)
    )
    authors, good = BASELINES[name]
    print(
        f"{name} on {task.name}, {method.steps:,} steps x {method.users_per_step} users: {seconds:.1f} CPU seconds, "
        f"{authors / seconds:.1f} x faster than {authors} s, {good / seconds:.1f} x than the good recipe's {good} s",
        flush=True,
    )


def together(seeds: int, width: int = 64, rows: int = 2560, steps: int = 200) -> float:
    """Return CPU milliseconds per step and seed of np_btl's item network, with `seeds` seeds in one batched product."""
    lead = () if seeds == 1 else (seeds,)
    weights = [torch.randn(*lead, width, width).div_(8).requires_grad_() for _ in range(3)]
    optimizer = torch.optim.Adam(weights, fused=True)
    x = torch.randn(*lead, rows, width)

    def train() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            h = x
            for weight in weights:
                h = silu(linear(h, weight) if seeds == 1 else torch.bmm(h, weight.mT))
            h.mean().backward()
            optimizer.step()

    train()
    return min(cpu_seconds(train) for _ in range(RUNS)) / steps / seeds * 1000


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        fits("np_btl", "two_modes", 1000)
        fits("vpl", "low_rank", 5000)
        one, many = together(1), together(SEEDS)
        print(
            f"{SEEDS} seeds in one batch: {many:.2f} ms per step and seed, one by one {one:.2f} ms: "
            f"{one / many:.2f} x as fast (so methods have no fit_many)"
        )
