"""The memory that a board will need, estimated before hours of trials, and the error where this machine has too little."""

from __future__ import annotations

from collections import Counter

from harness.errors import UserError
from harness.machine import memory_bytes
from harness.trials.plan import Plan

# Measured with 10 to 1,200 methods by `tests/benchmarks/bench_board_memory.py`.
BYTES_AT_LEAST = 6e8  # the program, its libraries, and boards of usual size
BYTES_PER_CELL = 150  # a method's scores of one person under one seed, at one number of shots
BYTES_PER_PAIR = 400  # two methods on one task at one number of shots: their difference


def board_bytes(plan: Plan) -> float:
    """Return how many bytes of memory the plan's board will need at most at one time."""
    methods = Counter(task for task, _ in {(trial.task, trial.method) for trial in plan.trials})
    pairs = sum(count**2 * len(task.shots) for task, count in methods.items())
    # and the swap control
    cells = [count * plan.tested[task] * (len(task.shots) + 1) for task, count in methods.items()]
    largest = max(cells, default=0)
    return BYTES_AT_LEAST + BYTES_PER_CELL * largest + BYTES_PER_PAIR * pairs


def check_board_fits(plan: Plan) -> None:
    """Raise UserError where this machine has less memory than the plan's board will need."""
    needed, here = board_bytes(plan), memory_bytes()
    if needed > here:
        methods = len({trial.method for trial in plan.trials})
        raise UserError(
            f"the board of this suite would need about {needed / 1e9:.1f} GB of memory, and this machine has "
            f"{here / 1e9:.1f} GB: it compares {methods:,} methods in pairs on {len(plan.suite.tasks):,} task settings",
            "split the suite into files with fewer methods or settings; trials that are in the store do not run again",
        )
