"""How and where a trial ran: facts, which are never part of its identity."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import resource
from pathlib import Path

import torch

from harness.trials.trial import Trial

FACT_NAMES = (  # how and where a trial ran: never part of its identity
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


def source_digests(trial: Trial) -> dict[str, str]:
    """16 hex digits of the task's and the method's file: where they change and `version` does not, the board says so."""
    files = {kind: inspect.getfile(type(getattr(trial, kind))) for kind in ("task", "method")}
    return {kind: hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for kind, file in files.items()}


def reset_peak_memory(device: str = "cpu") -> None:
    """Linux keeps a process's peak memory and lets it be reset; elsewhere the peak is that of the process's life."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """The most this process held since the last reset, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
