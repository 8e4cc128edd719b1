"""Overhead of Ray and the store per trial: 500 trivial trials in one group, against a bare loop over `run_trial`.

Prints milliseconds; the target is at most 50 per trial: python tests/benchmarks/bench_scheduling.py
"""

import os
import tempfile
import time
from pathlib import Path

os.environ["RAY_worker_niceness"] = "0"  # worker and bare loop then have the same priority

from harness import registry
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.finish import finish_trials
from harness.trials.plan import make_plan
from harness.trials.run import run_trial
from harness.trials.suite import read_suite

TRIALS = 500
SUITE = f"""
seeds = 1
controls = false
tasks = [{{ name = "low_rank", n_users = 20, new_users = 10, pairs_per_user = 10, feature_dim = 4, rank = 2, shots = [0], queries = 5 }}]
methods = [{{ name = "nothing", number = {list(range(TRIALS + 1))} }}]
"""
PLUGIN = '''"""chance, as often as one likes."""
from dataclasses import dataclass
from harness.methods.chance import Chance

@dataclass(frozen=True)
class Nothing(Chance):
    number: int = 0
'''


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plugin, suite = Path(folder, "nothing.py"), Path(folder, "suite.toml")
        plugin.write_text(PLUGIN)
        suite.write_text(SUITE)
        registry.add_plugins([plugin])
        store = Store(Path(folder, "store")).open()
        first, *trials = make_plan(read_suite(suite), store).trials
        prepared = open_prepared_task(store, first.task_key)

        from harness.on_ray.trials import run_trials_on_ray

        def seconds(run) -> float:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        bare = seconds(lambda: [run_trial(t, prepared.splits, prepared.truth) for t in trials])
        start = seconds(lambda: run_trials_on_ray([first], store, [plugin], workers=1))
        ray = seconds(lambda: run_trials_on_ray(trials, store, [plugin], workers=1))
        there = Store(Path(folder, "local")).open()
        make_plan(read_suite(suite), there)
        local = seconds(lambda: list(finish_trials(trials, there)))
    per_trial = {
        "bare run_trial": bare,
        "--local (with the store)": local,
        "Ray, 1 worker, less its start": ray - start,
    }
    for name, total in per_trial.items():
        print(f"{name:32}{1000 * total / TRIALS:8.2f} ms a trial")
    print(f"{'Ray over bare':32}{1000 * (ray - start - bare) / TRIALS:8.2f} ms a trial (aim: 50)")
    print(f"{'start and end of Ray, once':32}{start:8.2f} s")


if __name__ == "__main__":
    main()
