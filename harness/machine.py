"""What this machine offers to this process."""

from __future__ import annotations


def core_count() -> int:
    """Return the number of cores that this process may use: the machine's, less affinity and a container's limit."""
    import joblib  # here, because it is slow to import

    return joblib.cpu_count()
