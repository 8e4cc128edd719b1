"""The run loop of a trial, without Ray: fit once, then score every panel at every number of shots."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from harness import parallel
from harness.data import Pairs, Panel, Splits, Truth, arrays_digest, split_arrays
from harness.errors import UserError
from harness.method import Answerer, Method, Predictor, Run, State, Users, equal_users
from harness.scores.metrics import METRICS_VERSION, score_table
from harness.scores.stats import fixed_derangement
from harness.store import provenance
from harness.store.store import Store
from harness.trials.choose import choose_candidates
from harness.trials.facts import peak_memory_mb, reset_peak_memory, source_digests
from harness.trials.outputs import checked_per_pair, checked_state, checked_users, scores_and_answer_facts
from harness.trials.trial import Trial
from harness.trials.write_texts import write_texts

# Largest size of the learned tensors stored with a trial (trained language models are exempt): enough for the claims'
# figures, and a laptop's store can hold a thousand times as much.
MAX_LEARNED_BYTES = 2**23


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    predictions: log-odds float32[n queries], with keys `PANEL/SHOTS` and `PANEL/SHOTS/swapped`; where a panel has
    candidates, also the choices (harness/trials/choose.py), with keys `choices/PANEL/SHOTS`.
    scores: see harness.scores.metrics.score_table.
    """

    predictions: dict[str, np.ndarray]
    scores: pa.Table
    facts: dict[str, object]
    # `state/NAME`, and `users/I` of the test panel at the largest number of shots scored; {} if too large
    learned: dict[str, torch.Tensor]
    written: pa.Table | None = None  # texts from `write_texts`


def run_trial(
    trial: Trial,
    splits: Splits,
    truth: Truth | None,
    checkpoint: Path | None = None,
    store: Store | None = None,
    answer: Answerer | None = None,
) -> TrialResult:
    """Fit the method once, then score every panel at every number of shots.

    A method that asks a language model is not scored on the panel `seen` of training users, and has a swap control on the
    panel `test` alone: answers cost time and money. At the largest number of shots, each panel is scored once more with the swap control. Where a panel has candidates,
    the method also chooses each user's best of the first n, at every number of shots. On the test panel, a method with
    `generates` then writes texts. Where `adapt` returns the same as at the previous number of shots, predictions are
    copied, not computed again.

    The swap control answers each user's queries with another user's adapted state, by a fixed derangement. A method
    whose gain survives the swap ignores the user.

    checkpoint: a folder in which the method may save its progress, to continue after a kill.  store: where language
    models and their outputs are kept.  answer: answers the method's questions to a language model.

    Workers that run the trial together all call this function and find the same result.
    """
    method, test = trial.method, PanelResult()
    predictions: dict[str, np.ndarray] = {}
    device = "cuda" if method.trains_model and torch.cuda.is_available() else "cpu"
    run = run_of_trial(trial, store, device, truth if method.privileged else None, checkpoint)
    torch.manual_seed(trial.seed)
    reset_peak_memory(device)
    began = time.perf_counter()
    before = pairs_digest(splits)
    state = _fit_method(trial, splits, run)
    fit_seconds = time.perf_counter() - began
    with method.open_predictor(state, run) as predictor:
        for name, panel in splits.panels.items():
            if name == "seen" and method.asks_model:
                continue  # nothing is learned from training users, and their queries are half of all questions
            found = PanelRunner(trial, predictor, state, run, answer).run_panel(name, panel)
            predictions |= found.predictions
            test = found if name == "test" else test
    facts = {
        "adapt_seconds_per_user": test.adapt_seconds_per_user,
        "answers": test.answers,  # how the language model that was asked answers
        "bytes_per_user": test.bytes_per_user,
        "chosen": run.chosen,
        "context_effect": context_effect(predictions, max(trial.task.shots)),
        "curves": run.curves,
        "device": run.device,
        "fit_seconds": fit_seconds,
        "metrics_version": METRICS_VERSION,
        "model": getattr(method, "model", None),  # the model's name as written in the suite: where its files were
        "peak_gpu_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0,
        "peak_memory_mb": peak_memory_mb(),
        # The result of `diagnostics`, under the name that older stores know.
        "readings": {k: float(v) for k, v in trial.task.diagnostics(splits, truth, state, test.users).items()},
        "seconds": time.perf_counter() - began,
        "source": source_digests(trial),
        "tied_predictions": float((predictions[f"test/{max(trial.task.shots)}"] == 0).mean()),
        "world_size": parallel.worker_count(),
        "written_tokens_per_second": test.tokens_per_second,
    } | provenance.provenance_facts()
    if pairs_digest(splits) != before:
        raise ValueError(
            f"{method.name} wrote into the pairs or items it was given, so its scores would be of other questions: "
            "copy an array before changing it"
        )
    scores = score_table(predictions, splits, truth)
    return TrialResult(predictions, scores, facts, _learned_tensors(method, state, test.users), test.written)


def context_effect(predictions: dict[str, np.ndarray], shots: int) -> float | None:
    """Return the share of test queries answered otherwise with another person's state; None for a single person."""
    own, swapped = (predictions.get(f"test/{shots}{kind}") for kind in ("", "/swapped"))
    return None if own is None or swapped is None else float((np.sign(own) != np.sign(swapped)).mean())


def pairs_digest(splits: Splits) -> str:
    """Return a digest of all pairs: their users, items, labels and times."""
    return arrays_digest(split_arrays(splits))


def run_of_trial(
    trial: Trial,
    store: Store | None,
    device: str = "cpu",
    truth: Truth | None = None,
    checkpoint: Path | None = None,
) -> Run:
    """Return what a trial passes to its method."""
    return Run(trial.seed, device, truth, checkpoint, store, tuple(trial.task.shots), trial.identity)


def shown_validation(trial: Trial, splits: Splits) -> Panel:
    """Return the validation panel as `fit` gets it: its context is cut to the largest number of shots that is scored.

    Methods choose their settings on this panel.
    """
    panel = splits.panels["validation"]
    return Panel(panel.context.first(max(trial.task.shots)), panel.query)


def _fit_method(trial: Trial, splits: Splits, run: Run) -> State:
    """Fit the method and return its state.

    A failure that comes again after continuing from the checkpoint, without getting further, removes the checkpoint. A
    failure of the world, such as a full disk, and the first failure keep it.
    """
    before = _last_save(run.checkpoint)
    try:
        return checked_state(trial.method.fit(splits.train, shown_validation(trial, splits), run), trial.method.name)
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        no_further = before == _last_save(run.checkpoint)
        if run.checkpoint and no_further and not parallel.is_lost_connection(error):
            shutil.rmtree(run.checkpoint, ignore_errors=True)
        raise


def _last_save(checkpoint: Path | None) -> int | None:
    """Return when the newest file of a checkpoint was written, in nanoseconds; None where there is none."""
    files = checkpoint.rglob("*") if checkpoint and checkpoint.is_dir() else ()
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=None)


@dataclass
class PanelResult:
    """The result of a trial on one panel: predictions as in TrialResult, users and costs.

    users, both costs per user, and facts of a language model's answers are those at the largest number of shots scored.
    """

    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    users: Users = ()
    adapt_seconds_per_user: float = 0.0
    bytes_per_user: float = 0.0
    answers: dict[str, float] = field(default_factory=dict)
    written: pa.Table | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class PanelRunner:
    """A fitted method with what is needed to score panels."""

    trial: Trial
    predictor: Predictor
    state: State
    run: Run
    answer: Answerer | None

    def run_panel(self, name: str, panel: Panel) -> PanelResult:
        """Score the panel's queries at every number of shots, choose among its candidates, and write texts."""
        found, query, context = PanelResult(), panel.query.without_labels(), panel.context
        # Training users may have fewer context pairs than the largest number of shots.
        fewest_context_pairs = np.diff(context.offsets).min(initial=max(self.trial.task.shots))
        counts = [shots for shots in self.trial.task.shots if shots <= fewest_context_pairs]
        if self.trial.method.elicitation == "uncertainty":
            context = elicit_context(self.trial.method, self.state, context, max(counts), self.run)
        adapted: dict[int, Users] = {}  # by number of shots: what `adapt` returned at the first and at the latest
        before = None
        for shots in counts:
            started = time.perf_counter()
            users = self.predictor.adapt(self.state, context.first(shots), self.run)
            users = checked_users(users, query.n_users, self.trial.method.name)
            found.adapt_seconds_per_user = (time.perf_counter() - started) / max(1, query.n_users)
            found.bytes_per_user = sum(t.nbytes for t in users) / max(1, query.n_users)
            found.users = users
            if before is not None and equal_users(users, adapted[before]):
                for kind in ("", "choices/"):
                    if (old := f"{kind}{name}/{before}") in found.predictions:
                        found.predictions[f"{kind}{name}/{shots}"] = found.predictions[old]
            else:
                found.predictions[f"{name}/{shots}"], found.answers = self.score_queries(users, query)
                # A language model that compares pairs chooses no candidates: that would need a million questions.
                if panel.choices is not None and (self.trial.method.has_rewards or not self.trial.method.asks_model):
                    found.predictions[f"choices/{name}/{shots}"] = self.choose_candidates(users, query, panel.choices)
            adapted = {k: v for k, v in adapted.items() if k == counts[0]} | {shots: users}
            before = shots
        if query.n_users > 1 and (name == "test" or not self.trial.method.asks_model):
            other = torch.from_numpy(fixed_derangement(query.n_users))
            others = tuple(t[other] for t in found.users)
            alike = equal_users(others, found.users)
            last = found.predictions[f"{name}/{before}"]
            found.predictions[f"{name}/{before}/swapped"] = last if alike else self.score_queries(others, query)[0]
        if name == "test" and panel.choices is not None and self.trial.method.generates:
            found.written, found.tokens_per_second = write_texts(
                self.trial.method.name, self.predictor, self.state, adapted, panel, self.run
            )
        return found

    def score_queries(self, users: Users, query: Pairs) -> tuple[np.ndarray, dict[str, float]]:
        """Return float32[n queries], log-odds that left is preferred, and facts of a language model's answers."""
        return scores_and_answer_facts(self.trial.method, self.predictor, self.state, users, query, self.answer)

    def choose_candidates(self, users: Users, query: Pairs, choices: np.ndarray) -> np.ndarray:
        """Return each user's best of the first n candidates, as choose.choose_candidates does."""
        return choose_candidates(self.trial.method, self.predictor, self.state, users, query, choices, self.answer)


def elicit_context(method: Method, state: State, pool: Pairs, shots: int, run: Run) -> Pairs:
    """Return each user's first `shots` pairs of the pool, in the order in which the method asks for them.

    The method sees an answer only after asking for it. All users are asked in parallel, and adapted again after every
    answer.
    """
    order, blank = np.full(len(pool), np.inf), pool.without_labels()
    for turn in range(shots):
        users = method.adapt(state, pool.take(np.lexsort((order, pool.user))).first(turn), run)
        worth = checked_per_pair(method.uncertainty(state, users, blank), len(pool), f"{method.name}.uncertainty")
        worth = worth.astype(np.float64)
        worth[np.isfinite(order)] = -np.inf
        by_worth = np.lexsort((-worth, pool.user))
        order[by_worth[pool.offsets[:-1][np.diff(pool.offsets) > turn]]] = turn
    return pool.take(np.lexsort((order, pool.user))).first(shots)


def _learned_tensors(method: Method, state: State, users: Users) -> dict[str, torch.Tensor]:
    """Return the tensors to store, {} above MAX_LEARNED_BYTES. A trained language model is always stored."""
    named = {f"state/{k}": v for k, v in state.items()} | {f"users/{i}": t for i, t in enumerate(users)}
    if sum(t.nbytes for t in named.values()) > MAX_LEARNED_BYTES and not method.trains_model:
        return {}
    # copied, since safetensors refuses tensors that share memory
    return {k: t.detach().to("cpu", copy=True).contiguous() for k, t in named.items()}
