"""Manifests and score tables of finished trials."""

from __future__ import annotations

from typing import cast

import polars as pl
import pyarrow as pa
import safetensors.numpy
import safetensors.torch

from harness.errors import UserError
from harness.scores.metrics import METRICS_VERSION, score_table
from harness.store.prepared import open_prepared_task
from harness.store.store import Store

ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)  # tables of trials are small


def committed_manifest(store: Store, kind: str, key: str) -> dict:
    """Return the manifest of a task or trial that was finished. Raises UserError where it has disappeared since."""
    manifest = store.read_manifest(kind, key)
    if manifest is None:
        raise UserError(f"{store.root / kind / key}.json, or one of its files, has disappeared", "run the suite again")
    return manifest


def load_scores(store: Store, task_key: str, manifest: dict) -> pl.DataFrame:
    """Return a finished trial's score table, recomputed from its predictions if the metrics have changed since."""
    return cast(pl.DataFrame, pl.from_arrow(load_score_table(store, task_key, manifest)))


def load_score_table(store: Store, task_key: str, manifest: dict) -> pa.Table:
    """Return the table of `load_scores` as Arrow, of which thousands are read and joined faster."""
    if manifest["facts"].get("metrics_version") == METRICS_VERSION:
        return pa.ipc.open_file(
            pa.BufferReader(store.read_verified(manifest, "scores.arrow")), options=ONE_THREAD
        ).read_all()
    predictions = safetensors.numpy.load(store.read_verified(manifest, "predictions.safetensors"))
    prepared = open_prepared_task(store, task_key)
    return score_table(predictions, prepared.splits, prepared.truth)
