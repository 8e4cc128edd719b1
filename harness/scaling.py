"""Units of feature columns: each column is centred, and scaled to spread 1 over the training pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.errors import UserError

# Methods square features and sum them up in float32, which has 7 digits: beside a larger value than this, in units of
# the training pairs' spread, all others are lost.
MAX_SCALED_VALUE = 1e6


@dataclass(frozen=True, eq=False)
class ColumnScale:
    """Centre and spread of every feature column, so that no result depends on the units of columns.

    exponent: int[d], the power of two by which a column is divided first, so that no square overflows. Multiplying a
        column by a power of two changes no bit of the scaled features.
    centre, spread: float64[d], after that division.
    """

    exponent: np.ndarray
    centre: np.ndarray
    spread: np.ndarray

    @classmethod
    def of_pairs(cls, features: np.ndarray, left: np.ndarray, right: np.ndarray) -> ColumnScale:
        """Measure the columns of float[n, d] features: their medians, and the root mean square of the pairs' gaps.

        A column that is equal in all pairs is scaled by its spread over the items, and a constant one is only centred.
        left, right: int[pairs], rows of `features`.
        """
        features = np.asarray(features, dtype=np.float64)
        exponent = np.frexp(np.abs(features).max(axis=0, initial=0))[1]
        shifted = np.ldexp(features, -exponent)
        spread = np.sqrt(np.square(shifted[left] - shifted[right]).mean(axis=0))
        spread = np.where(spread > 0, spread, np.sqrt(2) * shifted.std(axis=0))
        return cls(exponent, np.median(shifted, axis=0), np.where(spread > 0, spread, 1))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return float32[n, d]: the features centred and scaled. Raises UserError where a value is too large."""
        shifted = np.ldexp(np.asarray(features, dtype=np.float64), -self.exponent)
        scaled = (shifted - self.centre) / self.spread
        check_magnitude(scaled, features)
        return scaled.astype(np.float32)


def check_magnitude(scaled: np.ndarray, given: np.ndarray) -> None:
    """Raise UserError for the first value of `scaled`, float[n, d], beside which others cannot be told apart.

    given: the same features as the user knows them.
    """
    too_large = np.abs(scaled) > MAX_SCALED_VALUE
    if too_large.any():
        item, column = np.argwhere(too_large)[0]
        raise UserError(
            f"feature column {column} of item {item} is {given[item, column]:g}, more than {MAX_SCALED_VALUE:g} times "
            "the usual difference between two options; beside it all other values would count as equal "
            f"({int(too_large.any(axis=1).sum())} such items in all)",
            "correct the value, drop the item, or give the column's logarithm",
        )
