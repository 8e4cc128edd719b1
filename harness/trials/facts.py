"""Facts of a trial: how and where it ran, which is never part of its identity."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import torch

from harness.trials.code_used import code_digest
from harness.trials.trial import Trial

FACT_NAMES = (
    "adapt_seconds_per_user",
    "answers",
    "bytes_per_user",
    "chosen",
    "code",
    "context_effect",
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
    "tied_predictions",
    "versions",
    "world_size",
    "written_tokens_per_second",  # None for a method that writes no texts
)


def source_digests(trial: Trial) -> dict[str, str]:
    """Return digests of the code of the task and of the method.

    The board warns where code has changed although its `version` has not.
    """
    return {kind: code_digest(type(getattr(trial, kind))) for kind in ("task", "method")}


def reset_peak_memory(device: str = "cpu") -> None:
    """Reset the peak memory of this process where the system allows it (Linux), and that of the GPU.

    Elsewhere the peak covers the whole life of the process.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Return this process's peak memory since the last reset, in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
