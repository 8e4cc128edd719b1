"""What a run would do: trials left, estimated time, and the gain it could detect."""

from __future__ import annotations

from statistics import median

from harness.scores.stats import detectable
from harness.store.store import Store
from harness.suite import Plan
from harness.trial import Trial

DISAGREE = 0.2  # share of queries on which two methods differ: between .1 and .3 on the suites here
ICC = 0.05  # how far such differences go together within one person


def unfinished(plan: Plan, store: Store) -> list[Trial]:
    """Trials without a committed result."""
    return [trial for trial in plan.trials if store.read("trials", trial.key) is None]


def estimated_seconds(trials: list[Trial], store: Store) -> dict[Trial, float]:
    """Seconds each trial would take: as long as finished ones of the same method and task took, else the method's guess."""
    taken: dict[tuple[str, str], list[float]] = {}
    for key in store.keys("trials"):
        if manifest := store.read("trials", key):
            identity = manifest["identity"]
            taken.setdefault((identity["task"], identity["method"]), []).append(manifest["facts"]["seconds"])
    known = {pair: median(seconds) for pair, seconds in taken.items()}
    return {t: known.get((t.identity["task"], t.identity["method"]), t.method.guess) for t in trials}


def forecast(plan: Plan, store: Store) -> dict:
    """Everything `manyminds plan` prints, as plain values."""
    left = unfinished(plan, store)
    return {
        "suite": plan.suite.name,
        "digest": plan.suite.digest,
        "trials": len(plan.trials),
        "finished": len(plan.trials) - len(left),
        "seconds_left": sum(estimated_seconds(left, store).values()),
        "tasks": [
            {
                "task": task.name,
                "people": people,
                "queries": task.queries,
                "seeds": len(plan.suite.seeds),
                "detectable": float(detectable(people, task.queries, DISAGREE, ICC)),
            }
            for task, people in plan.people.items()
        ],
        "refusals": [{"task": r.task.name, "method": r.method.name, "reason": r.reason} for r in plan.refusals],
    }
