"""Manifests and score tables of finished trials."""

from __future__ import annotations

from typing import cast

import polars as pl
import safetensors.numpy
import safetensors.torch

from harness.errors import UserError
from harness.scores.metrics import METRICS_VERSION, score_table
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.trial import Trial


def committed_manifest(store: Store, kind: str, key: str) -> dict:
    """The manifest of a task or trial that a plan found finished. Raises UserError where it has gone since."""
    manifest = store.read_manifest(kind, key)
    if manifest is None:
        raise UserError(f"{store.root / kind / key}.json is gone, or a file it names is", "run the suite again")
    return manifest


def load_scores(store: Store, trial: Trial, manifest: dict) -> pl.DataFrame:
    """A finished trial's score table, recomputed from its predictions where the metrics have changed since."""
    if manifest["facts"]["metrics_version"] == METRICS_VERSION:
        return pl.read_ipc(store.read_verified(manifest, "scores.arrow"))
    predictions = safetensors.numpy.load(store.read_verified(manifest, "predictions.safetensors"))
    prepared = open_prepared_task(store, trial.task_key)
    return cast(pl.DataFrame, pl.from_arrow(score_table(predictions, prepared.splits, prepared.truth)))
