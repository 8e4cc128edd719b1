"""Plan of a run: the trials that are left, the estimated time, and the gain that the suite could detect."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import median

import numpy as np

from harness.errors import UnavailableError, UserError
from harness.fields import name_at_version
from harness.inference.jobs import Job, NotCachedError, merge_jobs
from harness.method import Method, TaskFacts
from harness.scores.stats import detectable_difference
from harness.store.prepared import person_numbers
from harness.store.store import Store
from harness.task import Task
from harness.trials.prepare import describe_error, prepare_task, task_facts
from harness.trials.suite import Suite
from harness.trials.trial import Trial

ASSUMED_DISAGREEMENT = 0.2  # share of queries on which two methods differ: between .1 and .3 on the suites here
ASSUMED_CORRELATION = 0.05  # correlation of such differences within one person


@dataclass(frozen=True)
class Refusal:
    """A method that cannot run on a task, with its reason. Refusals are neither trials nor missing results."""

    task: Task
    method: Method
    reason: str


@dataclass(frozen=True)
class Plan:
    """Every trial of a suite, and the methods that refuse tasks.

    suite: without the tasks that are left out because their data or model is not here; `unavailable` says why.
    """

    suite: Suite
    trials: tuple[Trial, ...]
    refusals: tuple[Refusal, ...]
    people: dict[Task, int]  # test people over all seeds
    unavailable: dict[Task, str] = field(default_factory=dict)
    tested: dict[Task, int] = field(default_factory=dict)  # test people of each seed, summed


def prepare_tasks(
    suite: Suite, store: Store, on_prepared: Callable[[], object], make: Callable[[list[Job]], None] | None
) -> tuple[dict[tuple[Task, int], dict], dict[Task, str]]:
    """Prepare every task under every seed; return their manifests, and why tasks are left out, if the suite allows that.

    on_prepared: called each time that a task has been prepared for a seed.
    make: called with the jobs of all tasks whose rows (samples, vectors) the store lacks; it computes them.

    Raises NotCachedError where rows are missing and `make` is None, and UnavailableError where no task has its data.
    """
    manifests: dict[tuple[Task, int], dict] = {}
    unavailable: dict[Task, str] = {}
    while waiting := [
        each for each in product(suite.tasks, suite.seeds) if each not in manifests and each[0] not in unavailable
    ]:
        jobs = []
        for task, seed in waiting:
            if task in unavailable:
                continue
            try:
                manifests[task, seed] = prepare_task(store, task, seed)
                on_prepared()
            except NotCachedError as lacking:
                if make is None:
                    raise
                jobs.append(lacking.job)
            except UnavailableError as missing:
                if not suite.skip_unavailable or set(suite.tasks) == {*unavailable, task}:
                    raise
                unavailable[task] = missing.message
        if jobs and make is not None:
            for method in suite.methods:  # check that all models are available before hours of generation
                method.prepare_models(store)
            make(merge_jobs(jobs))
    return manifests, unavailable


def refusal(method: Method, facts: TaskFacts) -> str | None:
    """Return why the method does not run on a task, or None. Raises UserError where its `refuses` fails."""
    try:
        reason = method.refuses(facts)
    except Exception as error:
        raise UserError(
            f"{method.name}.refuses raised {describe_error(error, inspect.getfile(type(method)))}",
            "fix it: `manyminds check` calls it too",
        ) from error
    if reason is not None and not isinstance(reason, str):
        raise UserError(f"{method.name}.refuses returned {reason!r}", "return the reason as text, or None")
    return reason


def make_plan(
    suite: Suite,
    store: Store,
    on_prepared: Callable[[], object] = lambda: None,
    make: Callable[[list[Job]], None] | None = None,
) -> Plan:
    """Prepare the suite's tasks, let methods refuse tasks, and list the trials.

    on_prepared, make: as for `prepare_tasks`.
    """
    trials, refusals, people, tested = [], {}, {}, {}
    manifests, unavailable = prepare_tasks(suite, store, on_prepared, make)
    suite = replace(suite, tasks=tuple(task for task in suite.tasks if task not in unavailable))
    for task in suite.tasks:
        tested[task] = 0
        for seed in suite.seeds:
            manifest = manifests[task, seed]
            facts = manifest["facts"]
            for method in suite.methods:
                if reason := refusal(method, task_facts(manifest)):
                    refusals[task, method] = Refusal(task, method, reason)
                else:
                    trials.append(Trial(task, method, seed, facts["data"], manifest["key"]))
            tested[task] += facts["users"]["test/context"]
        # test users summed over seeds, but never more than there are different people
        numbers = person_numbers(store, [manifests[task, seed] for seed in suite.seeds])
        people[task] = min(tested[task], len(np.unique(np.concatenate(numbers))))
    return Plan(suite, tuple(trials), tuple(refusals.values()), people, unavailable, tested)


def unfinished_trials(trials: Iterable[Trial], store: Store) -> list[Trial]:
    """Return the trials without a committed result."""
    return [trial for trial in trials if store.read_manifest("trials", trial.key) is None]


def estimate_seconds(trials: list[Trial], store: Store) -> dict[Trial, float]:
    """Estimate the seconds that each trial takes.

    The estimate is the median of finished trials of the same method and task, or else the method's own guess.
    """
    known = known_seconds(store)
    return {t: known.get(_task_and_method(t), t.method.estimated_seconds) for t in trials}


def _task_and_method(trial: Trial) -> tuple[str, str]:
    """Return the names of a trial's task and method; of a tuned method also that of the method it tunes."""
    base = trial.method.variant_of
    own = name_at_version(trial.method)
    return name_at_version(trial.task), f"{own} {name_at_version(base)}" if base else own


def _recorded_task_and_method(identity: dict) -> tuple[str, str]:
    """Return `_task_and_method` of a finished trial's identity."""
    base = identity["method_fields"].get("method")  # of a tuned method: the name and fields of the one it tunes
    own = identity["method"]
    return identity["task"], f"{own} {base['method']}" if isinstance(base, dict) else own


def known_seconds(store: Store) -> dict[tuple[str, str], float]:
    """Return the median seconds of finished trials, by task and method."""
    taken: dict[tuple[str, str], list[float]] = {}
    for key in store.committed_keys("trials"):
        if manifest := store.read_manifest("trials", key):
            pair = _recorded_task_and_method(manifest["identity"])
            taken.setdefault(pair, []).append(manifest["facts"]["seconds"])
    return {pair: median(seconds) for pair, seconds in taken.items()}


def _detectable_gain(plan: Plan, task: Task) -> float | None:
    """Return the smallest gain whose limits on the board exclude the margin with 80 % power; None without intervals."""
    judged = {
        t.method for t in plan.trials if t.task == task and not t.method.privileged and t.method.family != "control"
    }
    seeds, people = len(plan.suite.seeds), plan.people[task]
    assumed = (task.queries, ASSUMED_DISAGREEMENT, ASSUMED_CORRELATION, seeds, max(1, len(judged)))
    return plan.suite.margin + detectable_difference(people, *assumed) if seeds > 2 else None


def describe_plan(plan: Plan, store: Store) -> dict:
    """Return everything that `manyminds plan` prints, as plain values."""
    left, known = unfinished_trials(plan.trials, store), known_seconds(store)
    return {
        "suite": plan.suite.name,
        "digest": plan.suite.digest,
        "trials": len(plan.trials),
        "finished": len(plan.trials) - len(left),
        "seconds_left": sum(known.get(_task_and_method(t), t.method.estimated_seconds) for t in left),
        "guessed": sum(_task_and_method(t) not in known for t in left),  # trials of which none like them has run here
        "tasks": [
            {
                "task": task.name,
                "people": people,
                "queries": task.queries,
                "seeds": len(plan.suite.seeds),
                "detectable": _detectable_gain(plan, task),
            }
            for task, people in plan.people.items()
        ],
        "unavailable": {task.name: reason for task, reason in plan.unavailable.items()},
        "refusals": [{"task": r.task.name, "method": r.method.name, "reason": r.reason} for r in plan.refusals],
    }
