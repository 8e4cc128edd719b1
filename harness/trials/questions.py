"""Questions from methods to language models: answered from the store, or collected before trials run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from threadpoolctl import threadpool_limits

from harness.errors import UserError
from harness.inference import answer
from harness.inference.cache import id_array
from harness.inference.jobs import Job, merge_jobs
from harness.method import Answerer, Questions
from harness.parallel import one_torch_thread
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.run import run_trial
from harness.trials.trial import Trial


def answers_from_store(store: Store) -> Answerer:
    """Return an answerer that reads stored answers. The answerer raises NotCachedError for a new question."""
    return lambda asked: answer.stored_log_odds(asked.model, asked.systems, asked.prompts, asked.words, store)


def question_collector(store: Store, jobs: list[Job]) -> Answerer:
    """Return an answerer that gives new questions log-odds of 0 (undecided), and adds a job for them to `jobs`."""

    def note(asked: Questions) -> np.ndarray:
        table, index = (
            answer.question_table(asked.systems, asked.prompts),
            answer.answer_index(asked.model, asked.words, store),
        )
        if len(left := answer.unanswered_questions(table, index)):
            jobs.append(answer.answer_job(asked.model, asked.words, lambda: [left], store))
        return np.nan_to_num(answer.log_odds_in_index(index, id_array(table["id"])))

    return note


def jobs_of_questions(trials: Iterable[Trial], store: Store) -> list[Job]:
    """Collect the unanswered questions of these trials' methods (`Method.asks_model`), in one job per model.

    The trials run with log-odds of 0 in place of missing answers, and their results are discarded. Where questions
    depend on earlier answers, new ones appear once these are answered: call again until there are none. A trial that
    fails here fails again when it runs, and is reported then. Only unanswered questions are held in memory.
    """
    jobs: list[Job] = []
    for trial in trials:
        if trial.method.asks_model:
            prepared = open_prepared_task(store, trial.task_key)
            with threadpool_limits(1), one_torch_thread():
                try:
                    run_trial(
                        trial, prepared.splits, prepared.truth, store=store, answer=question_collector(store, jobs)
                    )
                except UserError:
                    raise
                except Exception:  # reported when the trial itself runs
                    continue
    return merge_jobs(jobs)
