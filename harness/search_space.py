"""Search spaces: which fields of a method a search may change, and between which values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """All numbers from `low` to `high`, both included.

    log: equal ratios are equally likely, not equal differences.  whole: whole numbers only.
    when: fields of the method with the values at which this field matters; it is searched only there.
    """

    low: float
    high: float
    log: bool = True
    whole: bool = False
    when: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class OneOf:
    """One of the listed values.

    when: fields of the method with the values at which this field matters; it is searched only there.
    """

    values: tuple
    when: Mapping[str, object] = field(default_factory=dict)


SearchSpace = dict[str, Span | OneOf]  # by the name of the method's field
