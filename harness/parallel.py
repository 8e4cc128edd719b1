"""Communication between the workers of one trial, by plain torch.distributed; a single worker sends nothing."""

import contextlib
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import distributed

FAILURE_WINDOW = timedelta(seconds=10)  # workers that fail for the same reason do so within moments


def worker_count() -> int:
    """Return the number of workers that run this trial."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def worker_rank() -> int:
    """Return the rank of this worker, from 0."""
    return distributed.get_rank() if worker_count() > 1 else 0


def sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of all workers' tensors, on the device of this worker's tensor.

    The sum is taken on the device of the group's backend: the GPU for NCCL, the CPU otherwise.
    """
    if worker_count() == 1:
        return tensor
    home = tensor.device
    tensor = tensor.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(tensor)
    return tensor.to(home)


def first_workers_value(value: float) -> float:
    """Return the first worker's value, for decisions that all workers must take alike, such as whether to save now."""
    return float(sum_over_workers(torch.tensor([value if worker_rank() == 0 else 0.0], dtype=torch.float64)))


def gather_tables(table: pa.Table) -> pa.Table:
    """Join the tables of all workers, whose rows were dealt out in turn, into one table in the original order."""
    if worker_count() == 1:
        return table
    tables: list[pa.Table] = [pa.table({})] * worker_count()  # each is replaced
    distributed.all_gather_object(tables, table)
    order = np.argsort(np.concatenate([np.arange(t.num_rows) * worker_count() + i for i, t in enumerate(tables)]))
    return pa.concat_tables(tables).take(order)


def is_lost_connection(error: BaseException | None) -> bool:
    """Return whether the error, or an error that caused it, is a lost connection to another worker."""
    while error is not None:
        if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):  # gloo has no error class
            return True
        error = error.__cause__ or error.__context__
    return False


def have_all_workers_failed(key: str, reason: str) -> bool:
    """Return whether all workers of the trial failed for this reason, and are therefore still in step.

    Each worker writes its reason into the key-value store that their process group was started with. A collective
    operation cannot be used: some workers may still be waiting in another one.
    """
    try:
        met = distributed.distributed_c10d._get_default_store()
        told = [f"{key}/{worker}" for worker in range(distributed.get_world_size())]
        met.set(told[distributed.get_rank()], reason)
        met.wait(told, FAILURE_WINDOW)
        return all(met.get(name).decode() == reason for name in told)
    except (distributed.DistError, ValueError):  # ValueError: the process group is already shut down
        return False


NUMPY_ERRORS: dict[str, Any] = {
    "divide": "warn",
    "over": "warn",
    "under": "ignore",
    "invalid": "warn",
}  # numpy's defaults


@contextlib.contextmanager
def standard_state() -> Iterator[None]:
    """Use the default settings of torch and numpy inside this context, and restore the process's settings after it.

    A method, task or plug-in that changes a setting, or a filter of warnings, then changes nothing for others.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(False)
    try:
        with torch.enable_grad(), np.errstate(**NUMPY_ERRORS), warnings.catch_warnings():
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None if device.type == "cpu" else device)  # a default slows every call of torch
        torch.use_deterministic_algorithms(deterministic)


class one_torch_thread:
    """A context in which torch uses one thread.

    Sums are then always taken in the same order, so a trial gives the same bits in this process and on Ray.
    """

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self.before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch, and the libraries of linear algebra below it, use one thread.

    The order matters: torch's number is read and restored outside of the other limit. The other way round, it is read as
    1, and what comes after in this process, such as a language model, has one core for ever.
    """
    from threadpoolctl import threadpool_limits

    with one_torch_thread(), threadpool_limits(1):
        yield
