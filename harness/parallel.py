"""What the workers of one trial tell each other: plain torch.distributed, and nothing where one works alone."""

from datetime import timedelta

import numpy as np
import pyarrow as pa
import torch
from torch import distributed

FAILURE_WINDOW = timedelta(seconds=10)  # workers that fail for the same reason do so within moments


def worker_count() -> int:
    """How many workers run this trial."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def worker_rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if worker_count() > 1 else 0


def sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all workers of what each calls this with, on the device their group talks by."""
    if worker_count() == 1:
        return tensor
    home = tensor.device
    tensor = tensor.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(tensor)
    return tensor.to(home)


def first_workers_value(value: float) -> float:
    """The first worker's value: what all must do alike, such as whether to save now."""
    return float(sum_over_workers(torch.tensor([value if worker_rank() == 0 else 0.0], dtype=torch.float64)))


def gather_tables(table: pa.Table) -> pa.Table:
    """The tables of all workers, whose rows were dealt out in turn, as one in the original order."""
    if worker_count() == 1:
        return table
    tables: list[pa.Table] = [pa.table({})] * worker_count()  # each is replaced
    distributed.all_gather_object(tables, table)
    order = np.argsort(np.concatenate([np.arange(t.num_rows) * worker_count() + i for i, t in enumerate(tables)]))
    return pa.concat_tables(tables).take(order)


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether the error, or what it came from, is that of a connection to another worker."""
    while error is not None:
        if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):  # gloo has no class of its own
            return True
        error = error.__cause__ or error.__context__
    return False


def have_all_workers_failed(key: str, reason: str) -> bool:
    """Whether all workers of the trial failed for this reason, and so are still in step. They tell each other in the
    store that their group met by: no collective would do, as some may wait in another one.
    """
    try:
        met = distributed.distributed_c10d._get_default_store()
        told = [f"{key}/{worker}" for worker in range(distributed.get_world_size())]
        met.set(told[distributed.get_rank()], reason)
        met.wait(told, FAILURE_WINDOW)
        return all(met.get(name).decode() == reason for name in told)
    except (distributed.DistError, ValueError):  # ValueError: the group is taken down already
        return False


class one_torch_thread:
    """Sums in one order, so that any executor finds the same bits."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_) -> None:
        torch.set_num_threads(self.before)
