"""Tables in a terminal of any width: numbers are never cut, names take several lines, and columns that do not fit are named."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

LEAST_NAME = 14  # characters of a name in one line
BETWEEN = 3  # characters between two columns
EDGES = 2  # at both ends of a line


def print_table(
    console: Console,
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    names: Sequence[int],
    leave_out: Sequence[int] = (),
    dim: Sequence[bool] = (),
) -> None:
    """Print a table.

    names: columns of texts, which may take several lines; others hold numbers, which stand at the right, except in the
    first column. leave_out: columns that a narrow window lacks, the first one first. dim: for each line, whether it is grey.
    """
    cells = [[line[c] for line in lines] for c in range(len(heads))]
    longest = [max(map(len, [*own, ""])) for own in cells]
    words = [max(map(len, [*head.split(), ""])) for head in heads]
    # of a column of numbers the longest cell, or word of the head
    least = [min(longest[c], LEAST_NAME) if c in names else max(longest[c], words[c]) for c in range(len(heads))]
    shown, waiting = list(range(len(heads))), list(leave_out)

    def spare() -> int:
        return console.width - sum(least[c] for c in shown) - BETWEEN * (len(shown) - 1) - EDGES

    while spare() < 0 and waiting:
        shown.remove(waiting.pop(0))
    width = list(least)
    for c in sorted(shown, key=lambda c: c not in names):  # names first
        more = max(0, min(spare() - sum(width[k] - least[k] for k in shown), max(longest[c], len(heads[c])) - width[c]))
        width[c] += more
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for c in shown:
        right = c not in names and c > 0
        table.add_column(heads[c], width=width[c], justify="right" if right else "left", overflow="fold")
    for i, line in enumerate(lines):
        table.add_row(*(escape(line[c]) for c in shown), style="dim" if dim and dim[i] else None)
    console.print(table)
    if left_out := [heads[c] for c in range(len(heads)) if c not in shown]:
        console.print(f"left out in a window of {console.width} columns: {', '.join(left_out)}", markup=False)
