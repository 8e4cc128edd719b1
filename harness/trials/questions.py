"""Questions that methods ask language models: answered from the store, or collected before trials run."""

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
    """An answerer that reads what language models said; it raises NotCachedError where a question was not asked yet."""
    return lambda asked: answer.stored_log_odds(asked.model, asked.systems, asked.prompts, asked.words, store)


def question_collector(store: Store, jobs: list[Job]) -> Answerer:
    """An answerer that adds a job to `jobs` for questions not answered yet, and answers them with 0: undecided."""

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
    """All that methods which ask (Method.asks) will ask in these trials and nobody has answered: a job per model.

    Trials run as they will, with zeros for answers that are not there yet; nothing of them is kept. A method whose
    questions depend on answers has more of them once these are made: ask until there are none. A trial that fails here
    fails in its turn, where it is told. The questions are held in memory, without what is answered already.
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
                except Exception:  # told in its turn, where the store keeps why
                    continue
    return merge_jobs(jobs)
