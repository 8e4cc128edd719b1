"""run_trial: the one loop, without Ray. Every way of running, in process or on a cluster, goes through `finish`."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from harness import parallel
from harness.data import Pairs, Panel, Splits, Truth
from harness.method import Method, Run, State, Users, same
from harness.scores.metrics import METRICS_VERSION, score_table
from harness.scores.stats import derangement
from harness.store import provenance
from harness.trials.choose import choose
from harness.trials.facts import peak_memory_mb, reset_peak_memory, source_state
from harness.trials.outputs import per_pair, scored
from harness.trials.trial import Trial
from harness.trials.write_texts import write

LEARNED = 2**23  # bytes; what figures of claims are drawn from, and a laptop's store bears a thousand times


@dataclass(frozen=True)
class Result:
    """What a trial found.

    predictions: log-odds float32[n queries] under `panel/shots` and `panel/shots/swapped`, and where a panel has
    candidates, those chosen among them (harness/board/best_of.py) under `choices/panel/shots`. scores: a row per person.
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
