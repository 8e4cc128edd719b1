"""The contract every task and method must keep, for `manyminds check` and for the tests."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator

from threadpoolctl import threadpool_limits

from harness import registry
from harness.check.findings import Finding
from harness.check.methods import in_miniature, method_checks
from harness.check.tasks import task_checks
from harness.errors import Mistake
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
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?" if near else "manyminds list shows all; a file of yours is named by its path"
        )
        raise Mistake(f"there is no task or method {name!r}", hint)
    with threadpool_limits(1), one_torch_thread():
        for kind in kinds:
            thing = registry.load(kind, name)
            made = _ask("every field has a default", lambda: thing() and None)
            yield made
            if made.problem:
                continue
            with contextlib.ExitStack() as stack:
                if kind == "method":
                    battery = method_checks(*stack.enter_context(in_miniature(thing())), stack)
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
