"""What methods return, checked: one finite number for each pair, one text for each prompt."""

from __future__ import annotations

import numpy as np
import torch


def per_pair(answer: torch.Tensor, n: int, who: str) -> np.ndarray:
    """float32[n]: what the function `who` answered, one finite number for each of n pairs."""
    values = answer.detach().to("cpu", torch.float32).numpy()
    if values.shape != (n,):
        raise ValueError(f"{who} returned shape {values.shape} for {n} pairs")
    if not np.isfinite(values).all():
        raise ValueError(f"{who} returned {int((~np.isfinite(values)).sum())} numbers that are not finite")
    return values
