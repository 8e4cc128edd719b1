"""A search for a method's settings: Optuna proposes them, validation users judge them. The door to Optuna."""

from __future__ import annotations

import dataclasses
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import optuna
import torch

from harness.data import Pairs, Panel
from harness.errors import message_of
from harness.fields import field_values, identity_fields, name_at_version
from harness.method import Method, Run
from harness.scores.metrics import fit_temperature_scale, mean_log_loss
from harness.search_space import OneOf, SearchSpace
from harness.store.store import identity_hash

Sampler = Literal["tpe", "random"]
Setting = dict[str, object]  # values of some of a method's fields; {} is the method as it is
GENERATION = 8  # settings that are proposed at once, for any number of workers; the next ones learn from their losses
SEARCH_VERSION = 1  # raised whenever the same search would try other settings, or judge them otherwise


class Tried(NamedTuple):
    """A setting that was tried.

    loss: see `Search.try_setting`; None where the method failed.  seconds: how long that took, of one core.
    reason: why it failed.
    """

    setting: Setting
    loss: float | None
    seconds: float
    reason: str = ""


def searched_fields(method: Method) -> SearchSpace:
    """Return the part of a method's search space that is open: a field with another value than its default is fixed."""
    default = field_values(type(method)())
    return {name: part for name, part in method.search_space.items() if getattr(method, name) == default[name]}


class Search:
    """A search among the settings of a method, which tries the method as it is first.

    Settings are proposed in generations of GENERATION, each after all losses of the one before: so any number of workers
    finds the same.
    trials: number of settings.  seconds: no further generation begins once those tried took so long; 0 is no limit.
    run: of the trial that searches; what its store knows of a setting is not made again.
    """

    def __init__(self, method: Method, trials: int, seconds: float, sampler: Sampler, run: Run) -> None:
        self.method, self.trials, self.seconds, self.run = method, trials, seconds, run
        self.space = searched_fields(method)
        self.tried: list[Tried] = []
        self._proposed: list[optuna.trial.Trial] = []
        drawn = zlib.crc32(f"{run.seed}/{method.name}/search".encode())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=drawn, n_startup_trials=GENERATION),
            "random": lambda: optuna.samplers.RandomSampler(seed=drawn),
        }
        self._study = optuna.create_study(sampler=samplers[sampler]())

    def propose(self) -> list[Setting]:
        """Return the settings to try next; [] once the budget is spent."""
        left = self.trials - len(self.tried)
        spent = sum(tried.seconds for tried in self.tried)
        if left <= 0 or (self.seconds and spent >= self.seconds) or (self.tried and not self.space):
            return []
        first: list[Setting] = [] if self.tried else [{}]
        asked = min(GENERATION, left) - len(first) if self.space else 0
        self._proposed = [self._study.ask() for _ in range(asked)]
        return first + [self._suggested(trial) for trial in self._proposed]

    def _suggested(self, trial: optuna.trial.Trial) -> Setting:
        setting: Setting = {}
        for name, part in self.space.items():
            if any(setting.get(other, getattr(self.method, other)) != value for other, value in part.when.items()):
                continue
            if isinstance(part, OneOf):
                setting[name] = trial.suggest_categorical(name, part.values)
            elif part.whole:
                setting[name] = trial.suggest_int(name, int(part.low), int(part.high), log=part.log)
            else:
                setting[name] = trial.suggest_float(name, part.low, part.high, log=part.log)
        return setting

    def tell(self, tried: Sequence[Tried]) -> None:
        """Take what became of the settings that `propose` returned, in the same order."""
        for trial, found in zip(self._proposed, tried[len(tried) - len(self._proposed) :], strict=True):
            if found.loss is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, found.loss)
        self.tried += tried

    @property
    def best(self) -> Tried:
        """The setting with the lowest loss; of equal ones the first. Raises ValueError where all failed."""
        worked = [(tried.loss, place) for place, tried in enumerate(self.tried) if tried.loss is not None]
        if not worked:
            raise ValueError(f"none of {len(self.tried)} settings of {self.method.name} worked: {self.tried[0].reason}")
        return self.tried[min(worked)[1]]

    def known(self, setting: Setting) -> Tried | None:
        """Return what the store knows of a setting that was tried before, or None."""
        if self.run.store is None or not self.run.identity:
            return None
        found = self.run.store.read_manifest("searches", identity_hash(self.identity(setting)))
        return None if found is None else _tried(setting, found["facts"])

    def identity(self, setting: Setting) -> dict[str, object]:
        """Return what determines the loss of a setting."""
        method = dataclasses.replace(self.method, **setting)
        return {
            "search_version": SEARCH_VERSION,
            "method": name_at_version(method),
            "method_fields": identity_fields(method),
            "seed": self.run.seed,
            "data": self.run.identity["data"],
            "shots": self.run.shots,
        }

    def try_setting(self, setting: Setting, train: Pairs, validation: Panel) -> Tried:
        """Fit the method at a setting, and judge it on validation users.

        The loss is the calibrated log loss in nats, averaged over the numbers of shots that the trial scores.
        """
        if known := self.known(setting):
            return known
        torch.manual_seed(self.run.seed)  # so that the order in which settings are tried changes nothing
        began = time.process_time()
        facts: dict[str, object] = {"loss": None, "reason": ""}
        inner = dataclasses.replace(self.run, curves={}, chosen={})
        try:
            facts["loss"] = _validation_loss(dataclasses.replace(self.method, **setting), train, validation, inner)
        except (OSError, MemoryError, torch.OutOfMemoryError):  # a failure of the world, not of the setting
            raise
        except Exception as error:  # a setting that does not work: the budget counts it, and the board says so
            facts["reason"] = f"{type(error).__name__}: {message_of(error)}"
        facts["seconds"] = time.process_time() - began
        if self.run.store and self.run.identity:
            identity = self.identity(setting)
            self.run.store.commit("searches", identity_hash(identity), identity, {}, facts)
        return self.known(setting) or _tried(setting, facts)  # of two workers the first one counts


def levels_of_shots(validation: Panel) -> tuple[int, ...]:
    """Return numbers of shots to judge by outside a trial: none, an eighth, a quarter, half and all of the context."""
    shots = int(np.diff(validation.context.offsets).max(initial=0))
    return tuple(sorted({0, shots // 8, shots // 4, shots // 2, shots}))


def _tried(setting: Setting, facts: Mapping) -> Tried:
    return Tried(setting, facts["loss"], facts["seconds"], facts["reason"])


def _validation_loss(method: Method, train: Pairs, validation: Panel, run: Run) -> float:
    query, total = validation.query, 0.0
    state = method.fit(train, validation, run)
    scored = run.shots or levels_of_shots(validation)
    for shots in scored:
        users = method.adapt(state, validation.context.first(shots), run)
        z = method.score(state, users, query.without_labels()).detach().double().numpy()
        total += mean_log_loss(fit_temperature_scale(z, query.label) * z, query.label)
    if not math.isfinite(total):
        raise ValueError(f"the loss is {total}")
    return total / len(scored)
