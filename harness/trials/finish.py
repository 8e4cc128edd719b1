"""The end of every trial: its result is committed or its failure recorded, in process and on Ray alike."""

from __future__ import annotations

import contextlib
import logging
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pyarrow as pa
import safetensors.numpy
import safetensors.torch

from harness import parallel
from harness.errors import UserError, message_of
from harness.parallel import one_thread
from harness.store.logs import current_run_name
from harness.store.prepared import open_prepared_task
from harness.store.store import Store
from harness.trials.export import export_metadata
from harness.trials.questions import answers_from_store
from harness.trials.run import TrialResult, run_of_trial, run_trial, shown_validation
from harness.trials.trial import Trial

log = logging.getLogger(__name__)


def finish_trial(trial: Trial, store: Store) -> bool:
    """Run the trial unless it is finished, and commit its result. Return False if it failed; the store records why.

    A UserError (for example a full store) is not a failure of the trial and is raised. Workers that run the trial
    together all call this function, and the first of them commits. If only some of them failed or one is lost, the
    error is raised so that their group starts again. An exception is recorded as a failure of the trial. A lost
    connection to a worker is not, and the trial continues from its checkpoint.
    """
    if parallel.first_workers_value(store.read_manifest("trials", trial.key) is not None):
        return True
    what = f"{trial.key} {trial.method.name} on {trial.task.name}, seed {trial.seed}"
    log.info("trial %s: begins", what)
    alone = parallel.worker_count() == 1  # read now, because the group may be shut down while its workers fail
    checkpoint = store.checkpoint_folder(trial.key) if trial.method.trains_model else None
    if checkpoint:
        with store.os_errors_as_user_errors():
            checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        # opened for every trial: a method that writes into the arrays by mistake spoils only its own trial
        prepared = open_prepared_task(store, trial.task_key)
        with one_thread(), parallel.standard_state():
            result = run_trial(trial, prepared.splits, prepared.truth, checkpoint, store, answers_from_store(store))
        files = _result_files(trial, result)
    except UserError:
        raise
    # a method that ends the process would end all other trials silently
    except (Exception, GeneratorExit, SystemExit) as error:
        if not alone and parallel.is_lost_connection(error):
            raise
        reason = f"{type(error).__name__}: {message_of(error)}"
        log.exception("trial %s: failed", what)
        if alone or not store.read_failure(trial.key):  # of a group's failures, the first is recorded
            store.record_failure(trial.key, trial.identity, reason, traceback.format_exc(), current_run_name())
        if not alone and not parallel.have_all_workers_failed(trial.key, reason):
            raise
        return False
    if parallel.worker_rank() > 0:
        return True
    if not store.commit("trials", trial.key, trial.identity, files, result.facts):
        log.warning("trial %s: another process had committed it", what)
    log.info("trial %s: finished in %.1f s", what, result.facts["seconds"])
    if checkpoint:
        shutil.rmtree(checkpoint, ignore_errors=True)
    return True


def try_setting(trial: Trial, setting: dict[str, object], store: Store) -> None:
    """Try a setting that a trial's search proposed, unless the store knows it; its loss is committed to the store."""
    prepared = open_prepared_task(store, trial.task_key)
    with one_thread(), parallel.standard_state():
        search = trial.method.open_search(run_of_trial(trial, store))
        search.try_setting(setting, prepared.splits.train, shown_validation(trial, prepared.splits))


def _result_files(trial: Trial, result: TrialResult) -> dict[str, bytes | memoryview]:
    """Return the files of a result: name -> content."""
    # contiguous copies, because safetensors writes the memory of an array that is a view, not its values
    predictions = {name: np.ascontiguousarray(values) for name, values in result.predictions.items()}
    files: dict[str, bytes | memoryview] = {
        "predictions.safetensors": safetensors.numpy.save(predictions),
        "scores.arrow": compressed_arrow_file(result.scores),
    }
    if result.learned:
        settings = export_metadata(trial) if trial.method.trains_model else None
        files["learned.safetensors"] = safetensors.torch.save(result.learned, settings)
    if result.written is not None:
        files["written.arrow"] = compressed_arrow_file(result.written)
    return files


def finish_trials(
    trials: Iterable[Trial],
    store: Store,
    around: Callable[[Trial], AbstractContextManager[object]] = contextlib.nullcontext,
) -> Iterator[tuple[Trial, bool]]:
    """Finish trials one after another, task by task, and yield each with whether it succeeded.

    Trials that read what others learned come last.

    around: returns the context in which the trial runs.
    """
    for trial in sorted(trials, key=lambda t: (t.method.combines, t.task_key)):
        with around(trial):
            succeeded = finish_trial(trial, store)
        yield trial, succeeded


def compressed_arrow_file(table: pa.Table) -> memoryview:
    """Return the table as a compressed Arrow file; the same rows give the same bytes."""
    sink = pa.BufferOutputStream()
    # as small as with zstd, and read three times faster: a board reads thousands
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table.combine_chunks())
    return memoryview(sink.getvalue())
