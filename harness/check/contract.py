"""The contract every task and method must keep, for `manyminds check` and for the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from threadpoolctl import threadpool_limits

from harness import registry
from harness.check.findings import Finding, Question
from harness.check.methods import in_miniature, method_checks
from harness.check.tasks import task_checks
from harness.errors import Mistake, did_you_mean
from harness.parallel import one_torch_thread
from harness.store.store import Store
from harness.trials.prepare import told


def check_name(name: str, store: Store) -> Iterator[Finding]:
    """Every check of the task and of the method of that name. Raises Mistake where there is neither.

    store: where what language models make for a task is read.
    """
    kinds = [kind for kind in ("task", "method") if name in registry.names(kind)]
    if not kinds:
        known = registry.names("task") | registry.names("method")
        every = "manyminds list shows all; a file of yours is named by its path"
        raise Mistake(f"there is no task or method {name!r}", did_you_mean(name, known, every, cutoff=0.5))
    with threadpool_limits(1), one_torch_thread():
        for kind in kinds:
            yield from _findings(kind, name, store)


def _findings(kind: str, name: str, store: Store) -> Iterator[Finding]:
    thing = registry.load(kind, name)
    made = _ask("every field has a default", lambda: thing() and None)
    yield made
    if made.problem:
        return
    with contextlib.ExitStack() as stack:
        battery: Iterator[Question]
        if kind == "method":
            battery = method_checks(*stack.enter_context(in_miniature(thing())))
        else:
            battery = task_checks(thing(), store)
        for what, check in battery:
            yield _ask(f"{kind} {name}: {what}", check)


def _ask(what: str, check: Callable[[], str | None]) -> Finding:
    try:
        return Finding(what, check())
    except Mistake:
        raise
    except Exception as error:
        return Finding(what, told(error))
