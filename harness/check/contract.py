"""The contract that every task and method must keep, for `manyminds check` and for the tests."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import registry
from harness.check.findings import ContractFinding, Measured, NamedCheck
from harness.check.methods import method_checks, with_small_model
from harness.check.tasks import task_checks
from harness.errors import UserError, did_you_mean
from harness.parallel import one_thread
from harness.store.store import Store
from harness.trials.prepare import describe_error
from harness.trials.suite import read_suite


def check_name(name: str, store: Store) -> Iterator[ContractFinding]:
    """Run all checks of the task and of the method of that name. Raises UserError where there is neither.

    store: the store with the cached vectors, texts and answers of language models that a task needs.
    """
    kinds = [kind for kind in ("task", "method") if name in registry.list_names(kind)]
    if not kinds:
        known = registry.list_names("task") | registry.list_names("method")
        every = "`manyminds list` shows all names; for your own file, type its path"
        raise UserError(f"there is no task or method {name!r}", did_you_mean(name, known, every, cutoff=0.5))
    with one_thread():
        for kind in kinds:
            yield from _findings_of_kind(kind, name, store)


def check_tasks_of_suite(suite: Path, store: Store) -> Iterator[ContractFinding]:
    """Run all checks of each task of a suite, with the fields that the suite gives."""
    with one_thread():
        for task in read_suite(suite).tasks:
            for what, check in task_checks(task, store):
                yield _run_check(f"task {task.name}: {what}", check, inspect.getfile(type(task)))


def _findings_of_kind(kind: str, name: str, store: Store) -> Iterator[ContractFinding]:
    thing = registry.load_class(kind, name)
    made = _run_check("every field has a default", lambda: thing() and None)
    yield made
    if made.problem:
        return
    with contextlib.ExitStack() as stack:
        battery: Iterator[NamedCheck]
        if kind == "method":
            battery = method_checks(*stack.enter_context(with_small_model(thing())))
        else:
            battery = task_checks(thing(), store)
        for what, check in battery:
            yield _run_check(f"{kind} {name}: {what}", check, inspect.getfile(thing))


def _run_check(what: str, check: Callable[[], str | None], file: str | None = None) -> ContractFinding:
    """Run one check. file: of the task or method, whose line an error names where it passed through it."""
    try:
        found = check()
        return ContractFinding(what, None, str(found)) if isinstance(found, Measured) else ContractFinding(what, found)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        return ContractFinding(what, describe_error(error, file))
