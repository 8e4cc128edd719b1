"""Seconds and memory of `manyminds board` for many methods on one task, beside the memory that `plan` expects.

    python tests/benchmarks/bench_board_memory.py [METHODS ...]

The methods answer at random, so that nearly all of the time is the harness's own.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import registry
from harness.board.size import board_bytes
from harness.store.store import Store
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

PLUGIN = """
from dataclasses import dataclass

import torch

from harness.method import Method


@dataclass(frozen=True)
class Plugin(Method):
    family = "network"
    number: int = 0

    def fit(self, train, validation, run):
        return {}

    def adapt(self, state, context, run):
        return (torch.zeros(context.n_users, 1),)

    def score(self, state, users, query):
        return torch.randn(len(query.user), generator=torch.Generator().manual_seed(self.number), dtype=torch.float64)
"""
SUITE = """
seeds = 3
controls = false
tasks = [{{ name = "low_rank", n_users = 50, new_users = 100, pairs_per_user = 10, shots = [0, 5], queries = 20 }}]
methods = [{{ name = "shared" }}, {{ name = "plugin", number = {numbers} }}]
"""

# the command, which says its largest memory, in KiB, at the end
CALL = """
import resource, sys
from harness.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}


def measure(methods: int, plugin: Path, folder: Path) -> None:
    """Run a suite of this many methods in a folder, and print what its board takes."""
    suite, store = folder / "suite.toml", folder / "store"
    suite.write_text(SUITE.format(numbers=list(range(methods - 1))))
    choices = [str(suite), "--store", str(store), "--plugin", str(plugin)]

    def manyminds(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", CALL, *words], check=True, capture_output=True, text=True, env=ALONE
        )
        return done.stderr.split()[-1]

    manyminds("run", *choices, "--local")
    (store / "boards" / "suite.html").unlink()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    peak = 1024 * int(manyminds("board", *choices))
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    expected = board_bytes(make_plan(read_suite(suite), Store(store).open()))
    print(
        f"{methods:6,} methods: {seconds:6.1f} s, {peak / 1e9:5.2f} GB, expected {expected / 1e9:5.2f} GB", flush=True
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as parent:
        plugin = Path(parent, "plugin.py")
        plugin.write_text(PLUGIN)
        registry.add_plugins([plugin])
        for count in map(int, sys.argv[1:] or ["10", "100", "400"]):
            (folder := Path(parent, str(count))).mkdir()
            measure(count, plugin, folder)
