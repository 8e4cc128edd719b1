"""run_trial: the one loop, without Ray. Every way of running, in process or on a cluster, goes through `finish`."""

from __future__ import annotations

import hashlib
import inspect
import resource
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import safetensors.numpy
import torch
from threadpoolctl import threadpool_limits

from harness import provenance
from harness.data import Pairs, Panel, Splits, Truth
from harness.method import Method, Run, State, Users
from harness.metrics import METRICS_VERSION, per_pair, score_table
from harness.mistake import Mistake
from harness.prepare import open_prepared
from harness.steer import choose
from harness.store import Store
from harness.trial import Trial

LEARNED = 2**23  # bytes; what figures of claims are drawn from, and a laptop's store bears a thousand times

FACTS = (  # how and where a trial ran: never part of its identity
    "adapt_seconds_per_user",
    "bytes_per_user",
    "code",
    "curves",
    "device",
    "fit_seconds",
    "machine",
    "metrics_version",
    "peak_memory_mb",
    "readings",
    "seconds",
    "source",
    "versions",
)


@dataclass(frozen=True)
class Result:
    """What a trial found.

    predictions: log-odds float32[n queries] under `panel/shots` and `panel/shots/swapped`, and where a panel has
    candidates, those chosen among them (harness/steer.py) under `choices/panel/shots`. scores: a row per person.
    """

    predictions: dict[str, np.ndarray]
    scores: pa.Table
    facts: dict[str, object]
    learned: dict[str, np.ndarray]  # `state/NAME`, and `users/I` of the test panel at the largest shots; {} if large


def run_trial(trial: Trial, splits: Splits, truth: Truth | None) -> Result:
    """Fits once, then scores every panel at every number of shots it has, and at the largest under the swap control.

    Where a panel has candidates, every user's best of the first n are chosen at every number of shots too.

    The swap control answers each user's queries with another user's adapted state, by a fixed derangement: a method
    whose gain survives it ignores the user.
    """
    method, predictions = trial.method, {}
    run = Run(trial.seed, truth=truth if method.privileged else None)
    torch.manual_seed(trial.seed)
    reset_peak_memory()
    began = time.perf_counter()
    validation = splits.panels["validation"]  # what is chosen there is chosen at counts that are scored
    shown = Panel(validation.context.first(max(trial.task.shots)), validation.query)
    state = method.fit(splits.train, shown, run)
    fit_seconds = time.perf_counter() - began
    adapt_seconds, bytes_per_user, test_users = 0.0, 0.0, ()
    for name, panel in splits.panels.items():
        query = panel.query.without_labels()
        asked = panel.context
        known = np.diff(asked.offsets).min(initial=max(trial.task.shots))  # training users may have fewer answers
        counts = [shots for shots in trial.task.shots if shots <= known]
        if method.elicit == "uncertainty":
            asked = elicited(method, state, panel.context, max(counts), run)
        for shots in counts:
            context = asked.first(shots)
            started = time.perf_counter()
            users = method.adapt(state, context, run)
            if name == "test":
                adapt_seconds = (time.perf_counter() - started) / max(1, query.n_users)
                bytes_per_user = sum(t.nbytes for t in users) / max(1, query.n_users)
                test_users = users
            predictions[f"{name}/{shots}"] = per_pair(
                method.score(state, users, query), len(query), f"{method.name}.score"
            )
            if panel.choices is not None and not method.asks:  # a round robin would be a million questions
                predictions[f"choices/{name}/{shots}"] = choose(method, state, users, query, panel.choices)
        if query.n_users > 1:
            other = torch.from_numpy(derangement(query.n_users))
            swapped = method.score(state, tuple(t[other] for t in users), query)
            predictions[f"{name}/{shots}/swapped"] = per_pair(swapped, len(query), f"{method.name}.score")
    seconds = time.perf_counter() - began
    facts = {
        "adapt_seconds_per_user": adapt_seconds,
        "bytes_per_user": bytes_per_user,
        "curves": run.curves,
        "device": run.device,
        "fit_seconds": fit_seconds,
        "metrics_version": METRICS_VERSION,
        "peak_memory_mb": peak_memory_mb(),
        "readings": {k: float(v) for k, v in trial.task.readings(splits, truth, state, test_users).items()},
        "seconds": seconds,
        "source": source_state(trial),
    } | provenance.facts()
    return Result(predictions, score_table(predictions, splits, truth), facts, _learned(state, test_users))


def elicited(method: Method, state: State, pool: Pairs, shots: int, run: Run) -> Pairs:
    """Each user's first `shots` pairs in the order in which the method asks for them; answers are seen once asked.

    All users are asked at the same time, and adapted anew after every answer.
    """
    order, blank = np.full(len(pool), np.inf), pool.without_labels()
    for turn in range(shots):
        users = method.adapt(state, pool.take(np.lexsort((order, pool.user))).first(turn), run)
        worth = per_pair(method.uncertainty(state, users, blank), len(pool), f"{method.name}.uncertainty")
        worth = worth.astype(np.float64)
        worth[np.isfinite(order)] = -np.inf
        by_worth = np.lexsort((-worth, pool.user))
        order[by_worth[pool.offsets[:-1][np.diff(pool.offsets) > turn]]] = turn
    return pool.take(np.lexsort((order, pool.user))).first(shots)


def _learned(state: State, users: Users) -> dict[str, np.ndarray]:
    named = {f"state/{k}": v for k, v in state.items()} | {f"users/{i}": t for i, t in enumerate(users)}
    if sum(t.nbytes for t in named.values()) > LEARNED:
        return {}
    return {k: t.detach().cpu().contiguous().numpy() for k, t in named.items()}


def derangement(n: int) -> np.ndarray:
    """int64[n]: a fixed permutation without fixed points, the same for every method."""
    ring = np.random.default_rng(n).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[ring] = np.roll(ring, 1)
    return other


def finish(trial: Trial, store: Store) -> bool:
    """Runs the trial unless it is finished, and commits it. False where it failed; the store then holds why.

    A Mistake (a store that is full, say) is no failure of the trial and is raised.
    """
    if store.read("trials", trial.key):
        return True
    try:
        prepared = open_prepared(store, trial.task_key)  # anew: a method that writes into it harms itself alone
        with threadpool_limits(1), one_torch_thread():
            result = run_trial(trial, prepared.splits, prepared.truth)
    except Mistake:
        raise
    except Exception as error:
        store.fail(trial.key, trial.identity, f"{type(error).__name__}: {error}", traceback.format_exc())
        return False
    files = {"predictions.safetensors": safetensors.numpy.save(result.predictions), "scores.arrow": ipc(result.scores)}
    if result.learned:
        files["learned.safetensors"] = safetensors.numpy.save(result.learned)
    store.commit("trials", trial.key, trial.identity, files, result.facts)
    return True


def finish_all(
    trials: Iterable[Trial], store: Store, before: Callable[[Trial], object] = lambda trial: None
) -> Iterator[tuple[Trial, bool]]:
    """Finishes trials one after another, task by task, yielding each with whether it succeeded."""
    for trial in sorted(trials, key=lambda t: t.task_key):
        before(trial)
        yield trial, finish(trial, store)


def load_scores(store: Store, trial: Trial, manifest: dict) -> pl.DataFrame:
    """A finished trial's score table, recomputed from its predictions where the metrics have changed since."""
    if manifest["facts"]["metrics_version"] == METRICS_VERSION:
        return pl.read_ipc(store.load(manifest, "scores.arrow"))
    predictions = safetensors.numpy.load(store.load(manifest, "predictions.safetensors"))
    prepared = open_prepared(store, trial.task_key)
    return pl.from_arrow(score_table(predictions, prepared.splits, prepared.truth))


def ipc(table: pa.Table) -> memoryview:
    """The table as an Arrow file, the same bytes for the same rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())


class one_torch_thread:
    """Sums in one order, so that any executor finds the same bits."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self.before)


def source_state(trial: Trial) -> dict[str, str]:
    """16 hex digits of the task's and the method's file: where they change and `version` does not, the board says so."""
    files = {kind: inspect.getfile(type(getattr(trial, kind))) for kind in ("task", "method")}
    return {kind: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for kind, file in files.items()}


def reset_peak_memory() -> None:
    """Linux keeps a process's peak memory and lets it be reset; elsewhere the peak is that of the process's life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory_mb() -> float:
    """The most this process held since the last reset, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
