"""Questions that trials will ask a language model, collected before they run."""

from __future__ import annotations

from collections.abc import Iterable

from threadpoolctl import threadpool_limits

from harness.errors import Mistake
from harness.inference.answer import collecting
from harness.inference.jobs import Job, merged
from harness.store.store import Store
from harness.trials.trial import Trial


def questions(trials: Iterable[Trial], store: Store) -> list[Job]:
    """All that methods which ask (Method.asks) will ask in these trials and nobody has answered: a job per model.

    Trials run as they will, with zeros for answers that are not there yet; nothing of them is kept. A method whose
    questions depend on answers has more of them once these are made: ask until there are none. A trial that fails here
    fails in its turn, where it is told. The questions are held in memory, without what is answered already.
    """
    from harness.parallel import one_torch_thread
    from harness.store.prepared import open_prepared
    from harness.trials.run import run_trial

    with collecting(store) as jobs:
        for trial in trials:
            if type(trial.method).asks:
                prepared = open_prepared(store, trial.task_key)
                with threadpool_limits(1), one_torch_thread():
                    try:
                        run_trial(trial, prepared.splits, prepared.truth)
                    except Mistake:
                        raise
                    except Exception:  # told in its turn, where the store keeps why
                        continue
    return merged(jobs)
