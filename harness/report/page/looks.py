"""The colour, mark and dash that a method has in every figure of every board."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import cos, pi, sin

from harness.method import Method
from harness.report.plots import LOOKS, look_at_index

# Methods in the order of their looks: the eight that most boards compare have a colour for themselves, and new methods
# come last, so that none changes its look.
METHODS_IN_ORDER = [
    "pref",
    "rfm",
    "mixed_logit",
    "shared",
    "lore",
    "icra",
    "per_user",
    "vpl",
    "np_btl",
    "pal",
    "spectral",
    "moment",
    "ensemble",
    "dpl",
    "in_context",
    "likelihood",
    "reward_model",
    "dpo_head",
    "dpo",
    "np_dpo",
    "vas",
    "chance",
    "surface",
    "longest",
    "majority",
    "rater_mean",
]


def _star(size: float) -> str:
    """Return the path of a star with five points, whose tips are at `size` from 0."""
    radii = [size if k % 2 == 0 else size / 2.4 for k in range(10)]
    points = [f"{r * sin(k * pi / 5):.2f},{-r * cos(k * pi / 5):.2f}" for k, r in enumerate(radii)]
    return f"M{'L'.join(points)}Z"


def _saltire(size: float) -> str:
    """Return the path of a cross like an X in a square from -size to size."""
    points = [(-2, -1), (-1, -2), (0, -1), (1, -2), (2, -1), (1, 0), (2, 1), (1, 2), (0, 1), (-1, 2), (-2, 1), (-1, 0)]
    return f"M{'L'.join(f'{size * x / 2:g},{size * y / 2:g}' for x, y in points)}Z"


# matplotlib's markers as Vega's shapes; a path is drawn in a square from -1 to 1
SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": _saltire(1),
    "*": _star(1.2),
}
PATHS = {  # of the shapes, for marks beside a label
    "circle": "M-5,0A5,5,0,1,1,5,0A5,5,0,1,1,-5,0Z",
    "square": "M-5,-5H5V5H-5Z",
    "triangle-up": "M0,-5L5,4H-5Z",
    "triangle-down": "M0,5L5,-4H-5Z",
    "diamond": "M0,-6L5,0L0,6L-5,0Z",
    _saltire(1): _saltire(5),
    _star(1.2): _star(7),
    "cross": "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
}
DASHES = {"-": [1, 0], "--": [6, 3], "-.": [6, 3, 1, 3], ":": [1, 3]}


@dataclass(frozen=True)
class Look:
    """Colour, shape of the mark, and lengths of strokes and gaps, as Vega takes them."""

    color: str
    shape: str
    dash: tuple[int, ...]
    hollow: bool = False  # of variants, such as a tuned method

    @property
    def path(self) -> str:
        """The mark as the path of an SVG, 10 units wide around 0."""
        return PATHS[self.shape]


def look_number(method: Method) -> int:
    """Return the place of a method's look, for `look_at_index`; that of a plug-in depends on its name alone."""
    base = method.variant_of or method
    if base.name in METHODS_IN_ORDER:
        return METHODS_IN_ORDER.index(base.name)
    return len(METHODS_IN_ORDER) + sum(base.name.encode()) % len(LOOKS)


def looks_of_methods(labels: dict[Method, str]) -> dict[str, Look]:
    """Return the look of every ranked method by its label.

    Settings of one method have its colour, and marks and dashes of their own; variants have its mark, but hollow.
    """
    seen: Counter[int] = Counter()
    looks: dict[str, Look] = {}
    ranked = {method: label for method, label in labels.items() if not method.privileged}
    for method, label in sorted(ranked.items(), key=lambda pair: pair[0].variant_of is not None):
        base = ranked.get(method.variant_of) if method.variant_of else None
        number = look_number(method)
        if base:  # a line of another dash, too
            looks[label] = replace(looks[base], dash=_look_of(number, seen[number]).dash, hollow=True)
            continue
        taken = {(look.color, look.shape) for look in looks.values()}
        tried = [_look_of(number, seen[number] + more) for more in range(len(SHAPES))]
        # the first setting has the method's own look, on every page
        free = [look for look in tried if (look.color, look.shape) not in taken] if seen[number] else []
        looks[label] = (free or tried)[0]
        seen[number] += 1
    return {label: looks[label] for label in ranked.values()}


def _look_of(number: int, setting: int) -> Look:
    color, *_ = look_at_index(number)
    _, marker, dash = look_at_index(number + setting)
    return Look(color, SHAPES[marker], tuple(DASHES[dash] if isinstance(dash, str) else dash[1]))
