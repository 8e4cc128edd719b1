"""What a run would do: trials left, estimated time, and the gain it could detect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from statistics import median

from harness.inference.jobs import Job, NotCachedError, merge_jobs
from harness.method import Method
from harness.scores.stats import detectable_difference
from harness.store.store import Store
from harness.task import Task
from harness.trials.prepare import prepare_task, task_facts
from harness.trials.suite import Suite
from harness.trials.trial import Trial, name_at_version

ASSUMED_DISAGREEMENT = 0.2  # share of queries on which two methods differ: between .1 and .3 on the suites here
ASSUMED_CORRELATION = 0.05  # how far such differences go together within one person


@dataclass(frozen=True)
class Refusal:
    """A method that says why it cannot meet a task: neither a trial nor a hole."""

    task: Task
    method: Method
    reason: str


@dataclass(frozen=True)
class Plan:
    """Every trial of a suite, and who refused what."""

    suite: Suite
    trials: tuple[Trial, ...]
    refusals: tuple[Refusal, ...]
    people: dict[Task, int]  # test people over all seeds


def prepare_tasks(
    suite: Suite, store: Store, prepared: Callable[[], None], make: Callable[[list[Job]], None] | None
) -> dict[tuple[Task, int], dict]:
    """Every task's and seed's manifest. Rows that tasks lack (samples, vectors) are made for all of them at once.

    Raises NotCachedError where some are not made yet and `make`, which makes them, is None.
    """
    manifests: dict[tuple[Task, int], dict] = {}
    while waiting := [each for each in product(suite.tasks, suite.seeds) if each not in manifests]:
        jobs = []
        for task, seed in waiting:
            try:
                manifests[task, seed] = prepare_task(store, task, seed)
                prepared()
            except NotCachedError as lacking:
                if make is None:
                    raise
                jobs.append(lacking.job)
        if jobs and make is not None:
            for method in suite.methods:  # before the longest work, what would stop it afterwards
                method.prepare_models(store)
            make(merge_jobs(jobs))
    return manifests


def make_plan(
    suite: Suite,
    store: Store,
    prepared: Callable[[], None] = lambda: None,
    make: Callable[[list[Job]], None] | None = None,
) -> Plan:
    """Prepares what is not prepared yet, asks methods what they refuse, and lists the trials.

    `prepared` is called after each task and seed; `make` with the rows that tasks lack (see prepare_all).
    """
    trials, refusals, people = [], {}, {}
    manifests = prepare_tasks(suite, store, prepared, make)
    for task in suite.tasks:
        populations, counted = {}, 0
        for seed in suite.seeds:
            manifest = manifests[task, seed]
            facts = manifest["facts"]
            for method in suite.methods:
                if reason := method.refuses(task_facts(manifest)):
                    refusals[task, method] = Refusal(task, method, reason)
                else:
                    trials.append(Trial(task, method, seed, facts["data"], manifest["key"]))
            populations[facts["population"]] = facts["people"]
            counted += facts["users"]["test/context"]
        people[task] = min(counted, sum(populations.values()))
    return Plan(suite, tuple(trials), tuple(refusals.values()), people)


def unfinished_trials(plan: Plan, store: Store) -> list[Trial]:
    """Trials without a committed result."""
    return [trial for trial in plan.trials if store.read_manifest("trials", trial.key) is None]


def estimate_seconds(trials: list[Trial], store: Store) -> dict[Trial, float]:
    """Seconds each trial would take: as long as finished ones of the same method and task took, else the method's guess."""
    taken: dict[tuple[str, str], list[float]] = {}
    for key in store.committed_keys("trials"):
        if manifest := store.read_manifest("trials", key):
            identity = manifest["identity"]
            taken.setdefault((identity["task"], identity["method"]), []).append(manifest["facts"]["seconds"])
    known = {pair: median(seconds) for pair, seconds in taken.items()}
    return {
        t: known.get((name_at_version(t.task), name_at_version(t.method)), t.method.estimated_seconds) for t in trials
    }


def describe_plan(plan: Plan, store: Store) -> dict:
    """Everything `manyminds plan` prints, as plain values."""
    left = unfinished_trials(plan, store)
    return {
        "suite": plan.suite.name,
        "digest": plan.suite.digest,
        "trials": len(plan.trials),
        "finished": len(plan.trials) - len(left),
        "seconds_left": sum(estimate_seconds(left, store).values()),
        "tasks": [
            {
                "task": task.name,
                "people": people,
                "queries": task.queries,
                "seeds": len(plan.suite.seeds),
                "detectable": float(
                    detectable_difference(people, task.queries, ASSUMED_DISAGREEMENT, ASSUMED_CORRELATION)
                ),
            }
            for task, people in plan.people.items()
        ],
        "refusals": [{"task": r.task.name, "method": r.method.name, "reason": r.reason} for r in plan.refusals],
    }
