"""Searches on Ray: Tune tries the settings that all searches propose, one on each core; the losses are in the store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import print_note
from harness.on_ray import session  # noqa: F401  # first: it sets variables that Ray reads while it is imported
from harness.on_ray.marks import GroupMarks
from harness.on_ray.plain import trial_as_dict, trial_from_dict
from harness.store.store import Store

import ray.tune  # isort: skip
from ray.tune.progress_reporter import TrialProgressCallback  # isort: skip
from ray.tune.search import Searcher  # isort: skip

if TYPE_CHECKING:
    from harness.trials.trial import Trial

log = logging.getLogger(__name__)
SAY_SECONDS = 60.0  # between two lines of progress


class QuietReporter(TrialProgressCallback):
    """A callback that prints nothing; it replaces Tune's own."""

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        pass

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        pass

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        pass


class OpenSearch:
    """The search of one trial, with the generation of settings that is being tried."""

    def __init__(self, trial: Trial, store: Store) -> None:
        from harness.trials.run import run_of_trial  # here, because it imports torch

        self.search = trial.method.open_search(run_of_trial(trial, store))
        self.begin_generation()

    def begin_generation(self) -> None:
        """Propose settings, until there are some that the store does not know, or the budget is spent."""
        while True:
            self.settings = self.search.propose()
            self.found = [self.search.known(setting) for setting in self.settings]
            if not self.settings or None in self.found:
                break
            self.search.tell([each for each in self.found if each])
        self.waiting = [place for place, found in enumerate(self.found) if found is None]

    def note(self, place: int) -> None:
        """Note that a setting was tried; after the last one of the generation, propose the next generation.

        Where the store has no loss, a worker was lost: the rest of the search is left to the trial itself.
        """
        if not self.settings:
            return
        self.found[place] = self.search.known(self.settings[place])
        if self.found[place] is None:
            self.settings, self.found, self.waiting = [], [], []
        elif None not in self.found:
            self.search.tell([each for each in self.found if each])
            self.begin_generation()


class AllSearches(Searcher):
    """The searches of all trials as one search for Tune, which asks for the next setting whenever a core is free."""

    def __init__(self, searches: Sequence[OpenSearch]) -> None:
        super().__init__(metric="done", mode="max")
        self.searches = searches
        self.places: dict[str, tuple[int, int]] = {}  # Tune's trial -> a search, and a place in its generation

    def suggest(self, trial_id: str) -> Any:
        if not any(each.settings for each in self.searches):
            return Searcher.FINISHED
        for number, each in enumerate(self.searches):
            if each.waiting:
                place = each.waiting.pop(0)
                self.places[trial_id] = number, place
                return {"search": number, "setting": each.settings[place]}
        return None  # all proposed settings are being tried

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        number, place = self.places.pop(trial_id)
        self.searches[number].note(place)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the losses are in the store, and searches begin with those."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its searcher to save it


class Searches:
    """The searches of all trials, in the current Ray session."""

    def __init__(self, trials: Sequence[Trial], store: Store, workers: int | None, trial_minutes: float) -> None:
        """workers: the most settings that are tried at once, None for all cores.  trial_minutes: the longest for one."""
        self.trials, self.searches = trials, [OpenSearch(trial, store) for trial in trials]
        self.workers, self.trial_minutes = workers, trial_minutes
        self.said = time.monotonic()

    def run(self, around: dict, ray_storage: str) -> None:
        """Try the settings that the searches propose. around: what a worker has to know, see `plain.surroundings`."""
        if not any(each.settings for each in self.searches):
            return
        limit = {"marks": f"{ray_storage}/marks/searches", "trial_minutes": self.trial_minutes}
        work = [around | limit | trial_as_dict(trial) for trial in self.trials]
        runnable = ray.tune.with_resources(ray.tune.with_parameters(_try_setting, work=work), {"CPU": 1})
        algorithm = AllSearches(self.searches)
        tuner = ray.tune.Tuner(
            runnable,
            tune_config=ray.tune.TuneConfig(
                search_alg=algorithm, num_samples=-1, reuse_actors=True, max_concurrent_trials=self.workers
            ),
            run_config=ray.tune.RunConfig(storage_path=ray_storage, verbose=0, callbacks=[QuietReporter()]),
        )
        for error in tuner.fit().errors:
            log.error("a setting was not tried: %s", error)

    def look(self) -> None:
        """Say now and then how far the searches have come."""
        if time.monotonic() - self.said > SAY_SECONDS:
            self.said = time.monotonic()
            tried = sum(len(each.search.tried) for each in self.searches)
            ended = sum(not each.settings for each in self.searches)
            print_note(f"searches: {tried} settings tried, {ended} of {len(self.searches)} searches ended")


def _try_setting(config: dict, work: list[dict]) -> None:
    """Try one setting of one search; this is the function that Tune calls."""
    from harness import registry
    from harness.trials.finish import try_setting

    each = work[config["search"]]
    os.environ.update(each["environment"])
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    registry.add_plugins(each["plugins"])
    # A setting that takes too long ends this process; its search is then left to the trial, which has the same limit.
    with GroupMarks(each["marks"]).running(os.getpid(), each["key"], each["trial_minutes"]):
        try_setting(trial_from_dict(each), config["setting"], Store(each["store"]))
