"""Questions from methods to language models: answered from the store, or collected before trials run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from harness.errors import UserError
from harness.inference import answer, encode, likelihood
from harness.inference.asked import AskedRows
from harness.inference.jobs import Job, NotCachedError, merge_jobs
from harness.method import Answerer, Asked, Continuations, ItemRewards
from harness.parallel import one_thread
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.run import run_trial
from harness.trials.trial import Trial


def asked_rows(asked: Asked, store: Store) -> AskedRows:
    """Return what a method asks a language model for, with its place in the store."""
    if isinstance(asked, ItemRewards):
        return encode.asked_rewards(asked.model, asked.head, asked.prompts, asked.responses, store)
    if isinstance(asked, Continuations):
        return likelihood.asked_likelihoods(asked.model, asked.beginnings, asked.leads, asked.texts, store)
    return answer.asked_log_odds(asked.model, asked.systems, asked.prompts, asked.words, store)


def answers_from_store(store: Store) -> Answerer:
    """Return an answerer that reads stored answers. The answerer raises NotCachedError for a new question."""
    return lambda asked: asked_rows(asked, store).stored()


def question_collector(store: Store, jobs: list[Job]) -> Answerer:
    """Return an answerer that gives new questions 0 (undecided), and adds a job for them to `jobs`."""

    def note(asked: Asked) -> np.ndarray:
        rows = asked_rows(asked, store)
        if len(left := rows.missing()):
            jobs.append(rows.make_job(lambda: [left]))
        return np.nan_to_num(rows.known())

    return note


def jobs_of_questions(trials: Iterable[Trial], store: Store) -> list[Job]:
    """Collect the unanswered questions of these trials' methods (`Method.asks_model`), in one job per model.

    The jobs also make what these methods read before they ask, such as texts by the model.

    The trials run with log-odds of 0 in place of missing answers, and their results are discarded. Where questions
    depend on earlier answers, new ones appear once these are answered: call again until there are none. A trial that
    fails here fails again when it runs, and is reported then. Only unanswered questions are held in memory.
    """
    jobs: list[Job] = []
    for trial in trials:
        if trial.method.asks_model:
            prepared = open_prepared_task(store, trial.task_key)
            with one_thread():
                try:
                    run_trial(
                        trial, prepared.splits, prepared.truth, store=store, answer=question_collector(store, jobs)
                    )
                except NotCachedError as missing:  # of what the method reads before it asks
                    jobs.append(missing.job)
                except UserError:
                    raise
                except Exception:  # reported when the trial itself runs
                    continue
    return merge_jobs(jobs)
