"""Deaths of workers: what Train's controller does when one has ended."""

from __future__ import annotations

from harness.errors import UserError
from harness.on_ray.causes import cause_in_words
from harness.on_ray.marks import GroupMarks
from harness.store.store import Store

from harness.on_ray import session  # noqa: F401  # sets variables that Ray reads while it is imported  # isort: skip

from ray.train.v2.api.callback import UserCallback

# A group is restarted after this many worker deaths; one more is taken to mean that a trial kills its worker. In a team
# the deaths are counted for each trial.
MAX_FAILURES = 3
DIED_REASON = "this trial was running when a worker died, {} times in this run, which gave it up; the last time: {}"
TOO_LONG_REASON = "the trial took longer than {:g} minutes, the limit that --trial-minutes sets"


class GroupEndedError(UserError):
    """Workers of a group died too often. Finished work is in the store."""


class DeathCounter(UserCallback):
    """A callback of Train's controller that decides whether a group that lost a worker starts again.

    A trial during which too many workers died, or that took too long, fails. Trials that other workers were running do
    not, and start again. The group ends after too many deaths, and at a UserError, which another try would raise again.
    """

    def __init__(self, group: dict) -> None:
        self.group, self.deaths = group, 0

    def after_exception(self, run_context, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
        marks = GroupMarks(self.group["marks"])
        interrupted = [marks.interrupted_trial(rank) for rank in worker_exceptions]
        marks.forget_workers()
        late = {key: trace for key, trace in interrupted if trace}
        for key, trace in late.items():
            self.record_failure(key, TOO_LONG_REASON.format(self.group["trial_minutes"]), trace)
        if late or any(_is_preempted(error) for error in worker_exceptions.values()):
            return
        self.deaths += 1
        for key in {key for key, _ in interrupted if key}:  # in a team, several workers may have died in one trial
            marks.count_death(key)
        why = "; ".join(dict.fromkeys(cause_in_words(error) for error in worker_exceptions.values()))
        trials = self.group["trials"]
        ended = self.deaths > (len(trials) * (MAX_FAILURES + 1) if self.group["in_team"] else MAX_FAILURES)
        for trial in trials:
            if (deaths := marks.deaths(trial["key"])) and (ended or deaths > MAX_FAILURES):
                self.record_failure(trial["key"], DIED_REASON.format(deaths, why))
        if ended:
            raise GroupEndedError(
                f"workers died {self.deaths} times; the last time: {why}",
                "if memory is short, try fewer --workers; run with --local to find the trial that kills its worker. "
                "Finished trials are kept",
            )

    def record_failure(self, key: str, reason: str, trace: str = "") -> None:
        """Record why a trial failed, unless it has ended: with a result, or on another try."""
        store = Store(self.group["store"])
        if not store.has_ended(key):
            (identity,) = (trial["identity"] for trial in self.group["trials"] if trial["key"] == key)
            store.record_failure(key, identity, reason, trace, self.group["log"])


def _is_preempted(error: Exception) -> bool:
    """Return whether a worker died because its node was taken back, as nodes that cost less may be."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))
