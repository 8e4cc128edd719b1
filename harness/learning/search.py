"""The search for a method's settings: Optuna proposes them, and validation users judge them. The door to Optuna."""

from __future__ import annotations

from typing import NamedTuple

GENERATION = 8  # settings proposed at once, which any number of workers may try; later ones learn from their losses
Setting = dict[str, object]  # values of some fields of a method


class Tried(NamedTuple):
    """A setting that was tried.

    loss: see `loss_of`; None where the method failed.  seconds: of one core.
    """

    setting: Setting
    loss: float | None
    seconds: float
