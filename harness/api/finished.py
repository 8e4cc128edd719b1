"""Finished trials read back: scores, predictions, and what the method learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.numpy
import safetensors.torch

from harness import registry
from harness.errors import UserError
from harness.fields import name_at_version, names_by_recorded_name
from harness.method import Method, State, Users
from harness.scores.metrics import METRICS_VERSION
from harness.store.store import Store
from harness.trials.export import load_trained_method


@dataclass(frozen=True, eq=False)
class FinishedTrial:
    """One trial with its committed files, each read and verified when it is first asked for."""

    store: Store
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        """The 16 hex digits that name the result."""
        return self.manifest["key"]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the result: task, method, their fields, seed, and the digest of the data."""
        return self.manifest["identity"]

    @property
    def facts(self) -> dict[str, Any]:
        """How and where the trial ran: code, versions, seconds, memory, learning curves, diagnostics."""
        return self.manifest["facts"]

    @cached_property
    def scores(self) -> pl.DataFrame:
        """A row per panel, number of shots, swap control and person.

        Raises UserError where the stored table is of older metrics, which only a board computes again.
        """
        if self.facts.get("metrics_version") != METRICS_VERSION:
            raise UserError(
                f"the scores of {self.key} are of metrics {self.facts.get('metrics_version')}, not {METRICS_VERSION}",
                "SuiteRun.scores, or manyminds board SUITE, computes them again from the predictions",
            )
        return pl.read_ipc(self.store.read_verified(self.manifest, "scores.arrow"))

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """Log-odds float32[n queries] under `panel/shots`; choices among candidates under `choices/panel/shots`."""
        return safetensors.numpy.load(bytes(self.store.read_verified(self.manifest, "predictions.safetensors")))

    @cached_property
    def state(self) -> State:
        """The tensors that the method learned from training users; {} where it learned nothing, or too much to keep."""
        return self._learned("state/")

    @cached_property
    def users(self) -> Users:
        """The tensors that the method learned of each test user at the largest number of shots; () where none are kept."""
        found = self._learned("users/")
        return tuple(found[name] for name in sorted(found, key=int))

    def _learned(self, part: str) -> State:
        if "learned.safetensors" not in self.manifest["files"]:
            return {}
        tensors = safetensors.torch.load(bytes(self.store.read_verified(self.manifest, "learned.safetensors")))
        return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}

    def method(self) -> Method:
        """Return the method with the fields of this trial, so that `method.adapt(trial.state, pairs, run)` goes on.

        Raises UserError where the method's version has changed since, or its plug-in is not named.
        """
        if trained := load_trained_method(self.store, self.manifest):
            return trained[0]
        name = self.identity["method"].partition("@")[0]
        names = names_by_recorded_name(registry.load_class("method", name))
        fields = {names.get(field, field): value for field, value in self.identity["method_fields"].items()}
        method = registry.make_instance("method", name, fields)
        if name_at_version(method) != self.identity["method"]:
            raise UserError(
                f"the trial was run by {self.identity['method']}, and this code has {name_at_version(method)}",
                "run its suite again, or check out the commit that `facts['code']` names",
            )
        return method


def find_trial(store: Store, key: str) -> dict[str, Any]:
    """Return the manifest of the finished trial, or the note of the failed one, whose key begins with `key`.

    Raises UserError where there is none, or more than one.
    """
    matching = sorted(k for k in store.committed_keys("trials") | store.committed_keys("failures") if k.startswith(key))
    if len(matching) != 1:
        keys = f"{len(matching)} keys begin with {key}" if matching else f"no trial {key} in {store.root}"
        raise UserError(keys, "manyminds board SUITE --json lists keys; --store DIR names another store")
    found = store.read_manifest("trials", matching[0]) or store.read_failure(matching[0])
    if found is None:
        raise UserError(
            f"a file of the trial {matching[0]} is gone from {store.root}",
            "run its suite again: what is lost is made again",
        )
    return found


def load_trial(store: str | Path | Store, key: str) -> FinishedTrial:
    """Return the finished trial whose key begins with `key`. Raises UserError where it failed or is missing."""
    opened = store if isinstance(store, Store) else Store(store)
    found = find_trial(opened, key)
    if "files" not in found:
        raise UserError(
            f"the trial {found['key']} failed: {found['reason']}",
            f"manyminds show {found['key']} --store {opened.root} prints the traceback",
        )
    return FinishedTrial(opened, found)
