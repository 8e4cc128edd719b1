"""Training of PReF, LoRe, PAL and mixed_logit: CPU seconds on one thread, beside baselines measured on a similar core.

Prints the median of alternating runs: all of `fit`, and without the choice of the prior on validation users, which the
baselines lack: OMP_NUM_THREADS=1 python tests/benchmarks/bench_low_rank.py
"""

import time

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from harness.data import Panel
from harness.method import Run
from harness.registry import make_instance
from tasks.low_rank import LowRank

CASES = [  # label, method, fields, baseline's seconds
    (
        "lore, free weights, rank 5",
        "lore",
        {"weights": "free", "rank": 5},
        "16 s for 60 users (a loop over users); .7 s good",
    ),
    ("lore, simplex, rank 5", "lore", {"rank": 5}, "16 s for 60 users (a loop over users); .7 s good"),
    ("pal, distance, 1,200 steps x 256", "pal", {}, "14 s; 2 s good"),
    ("pal, angle, 1,200 steps x 256", "pal", {"variant": "angle"}, "14 s; 2 s good"),
    ("pref, rank 8", "pref", {"rank": 8}, "none"),
    ("pref, the rank chosen", "pref", {}, "none"),
    ("mixed_logit, one Gaussian", "mixed_logit", {"components": 1}, "none"),
    ("mixed_logit, a mixture tried", "mixed_logit", {}, "none"),
]
RUNS = 3


def cpu_seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    task = LowRank()  # 500 users x 100 pairs, 64 features
    splits = task.split(task.build(0), 0)
    validation = splits.panels["validation"]
    # one user without context: the choice of the prior then takes no time
    one = Panel(validation.context.chunk(0, 1).first(0), validation.query.chunk(0, 1))
    seconds = np.zeros((RUNS, len(CASES), 2))
    for run in range(-1, RUNS):  # the first run warms up
        for i, (_, name, fields, _) in enumerate(CASES):
            for j, panel in enumerate((validation, one)):
                method = make_instance("method", name, fields)
                seconds[run, i, j] = cpu_seconds(lambda: method.fit(splits.train, panel, Run(0)))  # noqa: B023
    for (what, *_, baseline), (whole, training) in zip(CASES, np.median(seconds, 0), strict=True):
        print(f"{what}: {whole:.2f} CPU s, {training:.2f} without choosing the prior (baseline: {baseline})")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with threadpool_limits(1):
        main()
