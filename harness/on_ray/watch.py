"""What the driver watches while Ray works: that Ray answers, that there are nodes to work on, and what ends in the store."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, TypeVar

from harness.errors import UserError, print_note
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.trials.trial import Trial

log = logging.getLogger(__name__)
Result = TypeVar("Result")

POLL_SECONDS = 0.5  # between two looks
ASK_SECONDS = 2.0  # between two questions to Ray's control service
MAX_SILENT_SECONDS = 30.0  # without an answer; Ray's own processes give up after 60 s
MAX_SHORT_SECONDS = 600.0  # with too few nodes; one that was pre-empted may return after minutes


class RayLostError(UserError):
    """Ray cannot go on. Finished work is in the store."""


def call_watched(
    work: Callable[[], Result],
    look: Callable[[], object] = lambda: None,
    shortage: Callable[[list[dict]], str] = lambda nodes: "",
) -> Result:
    """Call `work`, which waits for Ray, in a thread, and return its result; in this thread, look at what it does.

    look: called twice a second, and once at the end.
    shortage: returns what the nodes that are alive, as `ray.nodes` describes them, lack for any work to go on, or "".

    Raises RayLostError where Ray's control service does not answer any more: calls to Ray would wait for it until Ray
    ends this process. Raises RayLostError, too, where nodes that the work needs have left and do not return.
    """
    outcome: Future[Result] = Future()

    def settle() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    nodes = _NodeWatch(shortage)
    try:
        for task in (settle, nodes.ask):
            threading.Thread(target=task, daemon=True).start()
        while not wait([outcome], POLL_SECONDS).done:
            look()
            nodes.check()
    finally:
        nodes.ended.set()
    look()
    return outcome.result()


class _NodeWatch:
    """The nodes of the Ray cluster, as its control service lists them.

    Durations are counted in looks, so that a process that was stopped for a while does not take its own pause for
    Ray's.
    """

    def __init__(self, shortage: Callable[[list[dict]], str]) -> None:
        self.shortage, self.ended = shortage, threading.Event()
        self.answers: queue.SimpleQueue[list[dict]] = queue.SimpleQueue()
        self.silent = self.short = 0.0  # seconds
        self.alive: list[dict] | None = None
        self.seen: dict[str, str] = {}  # id -> name of each node that was alive

    def ask(self) -> None:
        """Ask for the nodes again and again; run in a thread, because without a control service no answer comes."""
        import ray

        while not self.ended.wait(ASK_SECONDS):
            with contextlib.suppress(Exception):  # Ray has been shut down, or does not answer
                self.answers.put(ray.nodes())

    def check(self) -> None:
        """Raise RayLostError where Ray cannot go on. Called every POLL_SECONDS."""
        self.silent += POLL_SECONDS
        while not self.answers.empty():
            self.silent = 0.0
            self.alive = [node for node in self.answers.get() if node["Alive"]]
            self.seen |= {n["NodeID"]: f"{n['NodeManagerHostname']} ({n['NodeManagerAddress']})" for n in self.alive}
        if self.silent > MAX_SILENT_SECONDS:
            raise RayLostError(
                f"Ray's control service (GCS) has not answered for {MAX_SILENT_SECONDS:.0f} s: it was killed, or its "
                "node is lost",
                "repeat the command once Ray runs again; what is finished is kept",
            )
        if self.alive is None:
            return
        lacking = self.shortage(self.alive)
        if not lacking:
            self.short = 0.0
            return
        here = {node["NodeID"] for node in self.alive}
        lost = [name for number, name in self.seen.items() if number not in here]
        why = f"{lacking}{'; lost: ' if lost else ''}{', '.join(lost)}"
        if not self.short:
            log.warning("no work can go on: %s", why)
            print_note(f"no work can go on: {why}; waiting {MAX_SHORT_SECONDS / 60:g} minutes for nodes")
        self.short += POLL_SECONDS
        if self.short > MAX_SHORT_SECONDS:
            raise RayLostError(
                f"no work could go on for {MAX_SHORT_SECONDS / 60:g} minutes: {why}",
                "repeat the command once the nodes are back, or with fewer --workers; what is finished is kept",
            )


class StoreWatch:
    """The trials of a run that have not ended yet.

    on_progress: called with the number of trials newly finished or failed. on_group: called with the trials of a group
    that has ended before others.
    """

    def __init__(
        self,
        store: Store,
        groups: Sequence[list[Trial]],
        on_progress: Callable[[int], object],
        on_group: Callable[[list[Trial]], object],
    ) -> None:
        self.store, self.groups, self.on_progress, self.on_group = store, groups, on_progress, on_group
        self.pending = {trial.key for group in groups for trial in group}
        # groups that have ended: the number of each, and whether it ran all its trials
        self.ended: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()

    def is_pending(self, trials: list[Trial]) -> bool:
        """Return whether any of these trials has not ended yet."""
        return any(trial.key in self.pending for trial in trials)

    def look(self) -> None:
        """Report the trials and groups that have ended since the last look."""
        done, groups = self.pending & self.store.ended_keys() if self.pending else set(), []
        while not self.ended.empty():
            number, ran_all = self.ended.get()
            groups.append(self.groups[number])
            if ran_all:  # so a trial without a record has failed, and another driver is trying it again
                done |= self.pending & {trial.key for trial in groups[-1]}
        self.pending -= done
        if done:
            self.on_progress(len(done))
        if self.pending:  # else everything has ended, which the caller sees
            for group in groups:
                self.on_group(group)
