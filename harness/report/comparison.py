"""Two sides compared, in a terminal and as one self-contained page with a forest plot."""

from __future__ import annotations

from rich.console import Console

from harness.board.compare import ComparedRow, Comparison
from harness.report.fitted_table import print_table
from harness.report.plots import PAGE_WIDTH, draw_svg
from harness.report.words import format_interval, format_number, format_p_value, shorten_label

HEADS = ("task", "method", "shots", "first", "second", "difference", "p", "better %", "worse %")
EXPLANATION = (
    "difference: second side minus first, in accuracy at the largest number of shots, paired over people and seeds, with 95 % "
    "limits for the row alone; p: over all rows that differ (Holm); better and worse: shares of people, as scored"
)


def cells_of_row(row: ComparedRow) -> list[str]:
    """Return the texts of a row, in the order of HEADS."""
    return [
        row.task,
        row.method,
        str(row.shots),
        format_number(row.before),
        format_number(row.after),
        format_interval(row.difference, signed=True),
        format_p_value(row.p),
        f"{100 * row.better:.0f}",
        f"{100 * row.worse:.0f}",
    ]


def comparison_summary(comparison: Comparison) -> str:
    """Return the sentence that counts what is surely better and worse."""
    better, worse, rows = comparison.surely(1), comparison.surely(-1), comparison.rows
    equal = sum(not row.better and not row.worse for row in rows)
    unsure = sum(row.difference.low is None for row in rows)
    said = f"of {len(rows)} rows, {len(better)} are surely better and {len(worse)} surely worse on the second side; {equal} are equal"
    return said + (f"; {unsure} have no interval, which needs three seeds" if unsure else "")


def print_comparison(comparison: Comparison) -> None:
    """Print the rows, the largest loss first, and what was not compared."""
    console = Console(highlight=False, emoji=False, width=None if Console().is_terminal else 140)
    print_table(console, HEADS, [cells_of_row(row) for row in comparison.rows], [0, 1], [2, 3, 4, 7, 8])
    for line in (comparison_summary(comparison), EXPLANATION, *(f"not compared: {x}" for x in comparison.unmatched)):
        console.print(line, markup=False)


def comparison_page(comparison: Comparison, sides: tuple[str, str]) -> str:
    """Return the HTML page, with a forest plot of the rows that differ."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("harness.report", "."), autoescape=select_autoescape(["html"]))
    return environment.get_template("compare.html").render(
        sides=sides,
        heads=HEADS,
        rows=[cells_of_row(row) for row in comparison.rows],
        summary=comparison_summary(comparison),
        explanation=EXPLANATION,
        unmatched=comparison.unmatched,
        figure=_forest_svg([row for row in comparison.rows if row.better or row.worse]),
    )


def _forest_svg(rows: list[ComparedRow]) -> str:
    """Return the SVG of the differences with their limits; "" without rows."""

    def draw(figure) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            point = row.difference
            sure = row.p is not None and row.p < 0.05
            if point.low is not None:
                axes.plot([point.low, point.high], [y, y], color="#0072b2", lw=3, alpha=0.5, solid_capstyle="round")
            axes.plot(point.value, y, marker="o", color="#0072b2", mfc="#0072b2" if sure else "#ffffff", ms=6)
        axes.axvline(0, color="#000000", lw=0.8)
        axes.set_yticks(range(len(rows)), [f"{shorten_label(row.method)} on {shorten_label(row.task)}" for row in rows])
        axes.set(xlabel="difference in accuracy; filled where it is sure over all rows", ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="x", alpha=0.3)

    return draw_svg(draw, (PAGE_WIDTH, 0.8 + 0.24 * len(rows))) if rows else ""
