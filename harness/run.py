"""run_trial: the one loop, without Ray. Every way of running, in process or on a cluster, goes through `finish`."""

from __future__ import annotations

import hashlib
import inspect
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import safetensors.numpy
import safetensors.torch
import torch
from threadpoolctl import threadpool_limits

from harness import parallel
from harness.data import Pairs, Panel, Splits, Truth
from harness.errors import Mistake
from harness.method import WRITTEN, Method, Run, State, Users, same
from harness.parallel import one_torch_thread
from harness.scores.metrics import METRICS_VERSION, score_table
from harness.scores.stats import derangement
from harness.steer import choose
from harness.store import provenance
from harness.store.prepared import open_prepared
from harness.store.store import Store
from harness.trained import described
from harness.trial import Trial
from harness.trials.outputs import per_pair

LEARNED = 2**23  # bytes; what figures of claims are drawn from, and a laptop's store bears a thousand times
WRITERS, PROMPTS = 40, 12  # people written to, and prompts: 1440 texts, two minutes at a core's 800 tokens a second
REFERENCE = -1  # in the place of a number of shots: texts of the model that a policy started from

FACTS = (  # how and where a trial ran: never part of its identity
    "adapt_seconds_per_user",
    "bytes_per_user",
    "code",
    "curves",
    "device",
    "fit_seconds",
    "machine",
    "metrics_version",
    "model",
    "peak_gpu_memory_mb",
    "peak_memory_mb",
    "readings",
    "seconds",
    "source",
    "versions",
    "world_size",
    "written_tokens_per_second",  # None where nothing is written
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
    learned: dict[str, torch.Tensor]  # `state/NAME`, and `users/I` of the test panel at the largest shots; {} if large
    written: pa.Table | None = None  # what `write` gives


def run_trial(trial: Trial, splits: Splits, truth: Truth | None, checkpoint: Path | None = None) -> Result:
    """Fits once, then scores every panel at every number of shots it has, and at the largest under the swap control.

    Where a panel has candidates, every user's best of the first n are chosen at every number of shots too; a policy
    writes to their prompts. What follows of the same adapted users is computed once: with any number of shots, and
    swapped, for a method that ignores the user.

    The swap control answers each user's queries with another user's adapted state, by a fixed derangement: a method
    whose gain survives it ignores the user.

    checkpoint: where the method may keep what it needs to go on after a kill. Workers that run the trial together all
    call this, and find the same.
    """
    method, predictions = trial.method, {}
    device = "cuda" if type(method).together and torch.cuda.is_available() else "cpu"
    run = Run(trial.seed, device, truth if method.privileged else None, checkpoint)
    torch.manual_seed(trial.seed)
    reset_peak_memory(device)
    began = time.perf_counter()
    validation = splits.panels["validation"]  # what is chosen there is chosen at counts that are scored
    shown = Panel(validation.context.first(max(trial.task.shots)), validation.query)
    try:
        state = method.fit(splits.train, shown, run)
    except Exception as error:  # it would only fail again from there; later on, what was fitted is kept
        if checkpoint and not parallel.is_another_gone(error):
            shutil.rmtree(checkpoint, ignore_errors=True)
        raise
    fit_seconds = time.perf_counter() - began
    adapt_seconds, bytes_per_user, test_users, written, speed = 0.0, 0.0, (), None, None
    for name, panel in splits.panels.items():
        query = panel.query.without_labels()
        asked = panel.context
        known = np.diff(asked.offsets).min(initial=max(trial.task.shots))  # training users may have fewer answers
        counts = [shots for shots in trial.task.shots if shots <= known]
        if method.elicit == "uncertainty":
            asked = elicited(method, state, panel.context, max(counts), run)
        first = before = None  # shots and users
        for shots in counts:
            context = asked.first(shots)
            started = time.perf_counter()
            users = method.adapt(state, context, run)
            if name == "test":
                adapt_seconds = (time.perf_counter() - started) / max(1, query.n_users)
                bytes_per_user = sum(t.nbytes for t in users) / max(1, query.n_users)
                test_users = users
            if before and same(users, before[1]):
                for kind in ("", "choices/"):
                    if (old := f"{kind}{name}/{before[0]}") in predictions:
                        predictions[f"{kind}{name}/{shots}"] = predictions[old]
            else:
                predictions[f"{name}/{shots}"] = scored(method, state, users, query)
                if panel.choices is not None and not method.asks:  # a round robin would be a million questions
                    predictions[f"choices/{name}/{shots}"] = choose(method, state, users, query, panel.choices)
            before = shots, users
            first = first or before
        if query.n_users > 1:
            other = torch.from_numpy(derangement(query.n_users))
            others = tuple(t[other] for t in users)
            alike = same(others, users)
            swapped = predictions[f"{name}/{shots}"] if alike else scored(method, state, others, query)
            predictions[f"{name}/{shots}/swapped"] = swapped
        if name == "test" and panel.choices is not None and type(method).generate is not Method.generate:
            written, speed = write(method, state, dict([first, before]), panel, run)
    seconds = time.perf_counter() - began
    facts = {
        "adapt_seconds_per_user": adapt_seconds,
        "bytes_per_user": bytes_per_user,
        "curves": run.curves,
        "device": run.device,
        "fit_seconds": fit_seconds,
        "metrics_version": METRICS_VERSION,
        "model": getattr(method, "model", None),  # as it was named, which tells where it lay
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0,
        "peak_memory_mb": peak_memory_mb(),
        "readings": {k: float(v) for k, v in trial.task.readings(splits, truth, state, test_users).items()},
        "seconds": seconds,
        "source": source_state(trial),
        "world_size": parallel.size(),
        "written_tokens_per_second": speed,
    } | provenance.facts()
    scores = score_table(predictions, splits, truth)
    return Result(predictions, scores, facts, _learned(method, state, test_users), written)


def scored(method: Method, state: State, users: Users, query: Pairs) -> np.ndarray:
    """float32[n queries]: log-odds."""
    return per_pair(method.score(state, users, query), len(query), f"{method.name}.score")


def write(
    method: Method, state: State, adapted: dict[int, Users], panel: Panel, run: Run
) -> tuple[pa.Table | None, float | None]:
    """A text of the policy for each of the first people and prompts, at each number of shots, and of its reference model.

    Columns shots (int32, REFERENCE for the reference model), person, prompt (row of the panel's choices), and those of
    WRITTEN; all rows of a number of shots together, and of a person. With it, tokens a second. None without text.
    """
    texts, people = panel.query.items.text, panel.query.people[:WRITERS]
    if texts is None:
        return None, None
    prompts = texts["prompt"].take(pa.array(panel.choices[:PROMPTS, 0])).to_pylist()
    user = np.repeat(np.arange(len(people), dtype=np.int32), len(prompts))
    place = np.tile(np.arange(len(prompts), dtype=np.int32), len(people))
    asked, found, tokens, began = [prompts[p] for p in place], {}, 0, time.perf_counter()
    for shots, users in ({REFERENCE: None} | adapted).items():
        if alike := [n for n in found if n != REFERENCE and same(users, adapted[n])]:
            found[shots] = found[alike[0]]
            continue
        found[shots] = whole(method.generate(state, users, user, asked, run), len(user), f"{method.name}.generate")
        tokens += int(found[shots]["n_tokens"].to_numpy().sum())
    speed = tokens / (time.perf_counter() - began)
    head = {"person": people[user], "prompt": place}
    parts = [
        pa.table(
            {"shots": np.full(len(user), shots, np.int32)} | head | dict(zip(WRITTEN.names, made.columns, strict=True))
        )
        for shots, made in found.items()
    ]
    return pa.concat_tables(parts), speed


def whole(made: pa.Table, n: int, who: str) -> pa.Table:
    """What the function `who` wrote: n rows of WRITTEN. Raises ValueError where it is something else."""
    if set(made.column_names) != set(WRITTEN.names) or len(made) != n:
        raise ValueError(f"{who} returned {len(made)} rows of {', '.join(made.column_names)} for {n} prompts")
    made = made.select(WRITTEN.names).cast(WRITTEN)
    for name in WRITTEN.names:
        if made[name].null_count or name in ("kl", "reference") and not np.isfinite(made[name].to_numpy()).all():
            raise ValueError(f"{who}: {name} is missing or not finite in some row")
    return made


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


def _learned(method: Method, state: State, users: Users) -> dict[str, torch.Tensor]:
    """Of a language model that was trained always: it is what the trial is for."""
    named = {f"state/{k}": v for k, v in state.items()} | {f"users/{i}": t for i, t in enumerate(users)}
    if sum(t.nbytes for t in named.values()) > LEARNED and not method.together:
        return {}
    return {k: t.detach().to("cpu", copy=True).contiguous() for k, t in named.items()}  # a file has no shared tensors


def finish(trial: Trial, store: Store) -> bool:
    """Runs the trial unless it is finished, and commits it. False where it failed; the store then holds why.

    A Mistake (a store that is full, say) is no failure of the trial and is raised. Workers that run the trial together
    all call this, and the first of them commits. Where they are out of step, as one alone failed or is gone, the error
    is raised, for their group to start anew: what failed is noted, and a trial whose worker is gone goes on from its
    checkpoint.
    """
    if parallel.agreed(store.read("trials", trial.key) is not None):
        return True
    alone = parallel.size() == 1  # asked now: a group may be taken down while its workers fail
    checkpoint = store.root / "checkpoints" / trial.key if type(trial.method).together else None
    if checkpoint:
        with store.explained():
            checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        prepared = open_prepared(store, trial.task_key)  # anew: a method that writes into it harms itself alone
        with threadpool_limits(1), one_torch_thread():
            result = run_trial(trial, prepared.splits, prepared.truth, checkpoint)
    except Mistake:
        raise
    except Exception as error:
        if not alone and parallel.is_another_gone(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        if alone or not store.failure(trial.key):  # of several reasons the first
            store.fail(trial.key, trial.identity, reason, traceback.format_exc())
        if not alone and not parallel.have_all_failed(trial.key, reason):
            raise
        return False
    if parallel.rank() > 0:
        return True
    files = {"predictions.safetensors": safetensors.numpy.save(result.predictions), "scores.arrow": ipc(result.scores)}
    if result.learned:
        settings = described(trial) if trial.method.together else None
        files["learned.safetensors"] = safetensors.torch.save(result.learned, settings)
    if result.written is not None:
        files["written.arrow"] = ipc(result.written)
    store.commit("trials", trial.key, trial.identity, files, result.facts)
    if checkpoint:
        shutil.rmtree(checkpoint, ignore_errors=True)
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


def source_state(trial: Trial) -> dict[str, str]:
    """16 hex digits of the task's and the method's file: where they change and `version` does not, the board says so."""
    files = {kind: inspect.getfile(type(getattr(trial, kind))) for kind in ("task", "method")}
    return {kind: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for kind, file in files.items()}


def reset_peak_memory(device: str = "cpu") -> None:
    """Linux keeps a process's peak memory and lets it be reset; elsewhere the peak is that of the process's life."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
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
