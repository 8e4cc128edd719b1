"""A suite's prepared tasks and predictions as a data set that others can load: parquet, a card, and Croissant metadata."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from scipy.special import expit

from harness.atomic import write_atomically
from harness.board.results import committed_manifest, load_scores
from harness.data import Pairs
from harness.errors import UserError
from harness.store.prepared import open_prepared_task
from harness.store.provenance import code_state
from harness.store.store import Store
from harness.task import Task
from harness.trials.plan import Plan
from harness.trials.trial import Trial

MEANINGS = {
    "seed": "the seed of the split; a simulator draws other data under each",
    "part": "train; or a panel (test, validation, or seen in training), and whether the pair was shown (context) or asked (query)",
    "user": "the person's id",
    "row": "the row of the table that the judgement is from, counting from 0; empty where there is none, or two (ratings: "
    "join by user and item)",
    "place": "the pair's place in its part",
    "left": "number of the left item",
    "right": "number of the right item",
    "prompt": "what was asked",
    "left_text": "the left response",
    "right_text": "the right response",
    "label": "P(left preferred)",
    "seconds": "response time",
    "left_name": "the left item's name, where items have no text",
    "right_name": "the right item's name, where items have no text",
    "left_rating": "the person's rating of the left item",
    "right_rating": "the person's rating of the right item",
    "item": "the item's number",
    "response": "the item's text",
    "name": "the item's name, where items have no text",
    "features": "the item's features, as methods get them",
    "method": "the method and its settings, as the board names them",
    "trial": "key of the trial: manyminds show KEY explains it",
    "shots": "how many pairs of the person the method was shown",
    "log_odds": "the method's log-odds that left is preferred",
    "probability": "the calibrated probability that left is preferred",
}
CROISSANT_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "float": "sc:Float", "double": "sc:Float"}
CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "recordSet": "cr:recordSet",
    "repeated": "cr:repeated",
    "source": "cr:source",
}


def export_suite(plan: Plan, store: Store, folder: Path) -> list[Path]:
    """Write a suite's tasks and finished predictions into an empty folder, and return the files.

    For each task setting there are three tables: `pairs` (every seed's split), `items` and `predictions`. The folder has
    a card with which `datasets.load_dataset(folder, "TASK-pairs")` works, and croissant.json. Raises UserError where the
    folder holds files, and where a task was prepared by a version that did not keep people's ids.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is a folder with files" if folder.is_dir() else "is a file"
        raise UserError(f"{folder} exists and {what}", "name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as partial:
        files = _write_files(plan, store, Path(partial) / "whole")
        (Path(partial) / "whole").replace(folder)  # an interrupted export leaves nothing behind
    return [folder / file for file in files]


def _write_files(plan: Plan, store: Store, folder: Path) -> list[Path]:
    """Write all files of an export into a new folder, and return their paths in it."""
    files: list[Path] = []
    tasks: dict[Task, str] = {}
    for number, task in enumerate(plan.suite.tasks):
        alike = [other for other in plan.suite.tasks if other.name == task.name]
        tasks[task] = task.name if len(alike) == 1 else f"{task.name}-{number + 1}"
        target = folder / tasks[task]
        target.mkdir(parents=True)
        trials = [trial for trial in plan.trials if trial.task == task]
        by_seed = {trial.seed: trial for trial in trials}
        for name, tables in (
            ("pairs", (pairs_table(store, by_seed[seed]) for seed in sorted(by_seed))),
            ("items", (items_table(store, by_seed[seed]) for seed in sorted(by_seed))),
            ("predictions", _predictions(plan, store, trials)),
        ):
            if path := _write_tables(target / f"{name}.parquet", tables):
                files.append(path)
    write_atomically(folder / "README.md", _card(plan, tasks, folder, files).encode())
    write_atomically(folder / "croissant.json", json.dumps(croissant(plan, folder, files), indent=1).encode())
    return [path.relative_to(folder) for path in (*files, folder / "README.md", folder / "croissant.json")]


def _write_tables(path: Path, tables: Iterator[pa.Table]) -> Path | None:
    """Write the tables one after another into one parquet file; None where there are none."""
    first = next(tables, None)
    if first is None:
        return None
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for table in chain([first], tables):
            writer.write_table(table.cast(first.schema))
    return path


def _user_ids(store: Store, task_key: str) -> np.ndarray:
    manifest = committed_manifest(store, "tasks", task_key)
    if "users.arrow" not in manifest["files"]:
        raise UserError(
            f"the task {task_key} was prepared by a version that did not keep people's ids",
            "use a new store: the trials run again",
        )
    table = pa.ipc.open_file(pa.BufferReader(bytes(store.read_verified(manifest, "users.arrow")))).read_all()
    return np.array(table["id"].to_pylist(), dtype=object)


def pairs_table(store: Store, trial: Trial) -> pa.Table:
    """Return a row per pair of a seed's split, with the columns that the task has."""
    splits, ids = open_prepared_task(store, trial.task_key).splits, _user_ids(store, trial.task_key)
    return pa.concat_tables(
        [_pair_columns(pairs, ids, {"seed": trial.seed, "part": name}) for name, pairs in splits.named_parts().items()]
    )


def _pair_columns(pairs: Pairs, ids: np.ndarray, constants: dict[str, Any]) -> pa.Table:
    n = len(pairs)
    columns: dict[str, Any] = {name: pa.repeat(pa.scalar(value), n) for name, value in constants.items()}
    columns["user"] = pa.array(ids[pairs.people[pairs.user]], pa.string())
    columns["row"] = pa.nulls(n, pa.int64()) if pairs.row is None else pa.array(np.asarray(pairs.row))
    columns["place"] = np.arange(n)
    columns |= {"left": pairs.left.astype(np.int64), "right": pairs.right.astype(np.int64)}
    if pairs.items.text is not None:
        text = pairs.items.text
        columns["prompt"] = text["prompt"].take(pairs.left).cast(pa.string())
        columns["left_text"] = text["response"].take(pairs.left).cast(pa.string())
        columns["right_text"] = text["response"].take(pairs.right).cast(pa.string())
    if pairs.items.names is not None:
        columns["left_name"] = pairs.items.names.take(pairs.left)
        columns["right_name"] = pairs.items.names.take(pairs.right)
    columns["label"] = np.asarray(pairs.label)
    if pairs.seconds is not None:
        columns["seconds"] = np.asarray(pairs.seconds)
    if pairs.ratings is not None:
        columns["left_rating"], columns["right_rating"] = np.ascontiguousarray(pairs.ratings.T)
    return pa.table(columns)


def items_table(store: Store, trial: Trial) -> pa.Table:
    """Return a row per item of a seed's data: its text and its features, where it has them."""
    items = open_prepared_task(store, trial.task_key).splits.train.items
    columns: dict[str, Any] = {"seed": np.full(len(items), trial.seed), "item": np.arange(len(items))}
    if items.text is not None:
        columns |= {name: items.text[name].cast(pa.string()) for name in ("prompt", "response")}
    if items.names is not None:
        columns["name"] = items.names
    if items.features is not None:
        flat = pa.array(np.asarray(items.features, dtype=np.float32).reshape(-1))
        columns["features"] = pa.FixedSizeListArray.from_arrays(flat, items.features.shape[1])
    return pa.table(columns)


def _predictions(plan: Plan, store: Store, trials: list[Trial]) -> Iterator[pa.Table]:
    from harness.board.board import setting_labels

    names = setting_labels(list(plan.suite.methods))
    for trial in trials:
        if manifest := store.read_manifest("trials", trial.key):
            yield predictions_table(store, trial, manifest, names[trial.method])


def predictions_table(store: Store, trial: Trial, manifest: dict, method: str) -> pa.Table:
    """Return a row per panel, number of shots and query pair of a finished trial, without the swap control."""
    splits, ids = open_prepared_task(store, trial.task_key).splits, _user_ids(store, trial.task_key)
    told = safetensors.numpy.load(bytes(store.read_verified(manifest, "predictions.safetensors")))
    scores = load_scores(store, trial.task_key, manifest).filter(pl.col("swapped").not_())
    scales = dict(scores.group_by("shots").agg(pl.col("scale").first()).iter_rows())
    parts = []
    for name in sorted(told):
        panel, shots, *rest = name.split("/")
        if rest or panel == "choices":
            continue
        query, z = splits.panels[panel].query, told[name].astype(np.float64)
        constants = {"seed": trial.seed, "method": method, "trial": trial.key, "part": f"{panel}/query"}
        constants["shots"] = int(shots)
        table = _pair_columns(query, ids, constants)
        kept = [c for c in table.column_names if c not in ("prompt", "left_text", "right_text", "seconds")]
        table = table.select(kept).append_column("log_odds", pa.array(z))
        parts.append(table.append_column("probability", pa.array(expit(scales[int(shots)] * z))))
    return pa.concat_tables(parts)


def _card(plan: Plan, tasks: dict[Task, str], folder: Path, files: list[Path]) -> str:
    """Return the data set's card: configurations for the library `datasets`, sources, licences, columns."""
    lines = ["---", "configs:"]
    for path in files:
        name = path.relative_to(folder).as_posix()
        lines += [f"- config_name: {name.removesuffix('.parquet').replace('/', '-')}", "  data_files:"]
        lines += ["  - split: train", f"    path: {name}"]
    lines += ["---", "", f"# {plan.suite.title}", ""]
    lines += [
        f"{'Splits and predictions' if any('predictions' in path.name for path in files) else 'Splits'} of the ManyMinds suite `{plan.suite.name}` (digest {plan.suite.digest}), written by the code "
        f"at {code_state()}. The library `datasets` calls the only part of each table `train`; the column `part` says how "
        "a pair was used.",
        "",
        "| task | source | licence |",
        "|---|---|---|",
    ]
    lines += [
        f"| {label} | {task.paper or '-'} | {task.licence or 'see the source'} |" for task, label in tasks.items()
    ]
    written = {name for path in files for name in pq.read_schema(path).names}
    lines += ["", "| column | meaning |", "|---|---|"]
    lines += [*(f"| `{name}` | {meaning} |" for name, meaning in MEANINGS.items() if name in written), ""]
    return "\n".join(lines)


def croissant(plan: Plan, folder: Path, files: list[Path]) -> dict[str, Any]:
    """Return Croissant metadata (version 1.0, MLCommons 2024) of the tables."""
    objects, records = [], []
    for path in files:
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        objects.append(
            {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "contentSize": f"{path.stat().st_size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": digest,
            }
        )
        table = name.removesuffix(".parquet").replace("/", "-")
        fields = [_croissant_field(table, name, column) for column in pq.read_schema(path)]
        records.append({"@type": "cr:RecordSet", "@id": table, "name": table, "field": fields})
    licences = sorted({task.licence for task in plan.suite.tasks} - {""})
    return {
        "@context": CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": plan.suite.name,
        "description": f"Splits and predictions of the ManyMinds suite {plan.suite.title}, digest {plan.suite.digest}",
        "license": "; ".join(licences) or "see the sources of the tasks",
        "citeAs": "; ".join(sorted({task.paper for task in plan.suite.tasks} - {""})) or "ManyMinds",
        "distribution": objects,
        "recordSet": records,
    }


def _croissant_field(table: str, file: str, column: pa.Field) -> dict[str, Any]:
    listed = pa.types.is_fixed_size_list(column.type)
    kind = str(column.type.value_type if listed else column.type)
    field = {
        "@type": "cr:Field",
        "@id": f"{table}/{column.name}",
        "name": column.name,
        "description": MEANINGS[column.name],
        "dataType": CROISSANT_TYPES[kind],
        "source": {"fileObject": {"@id": file}, "extract": {"column": column.name}},
    }
    return field | ({"repeated": True} if listed else {})
