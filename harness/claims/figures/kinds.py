"""Figures of claims: they draw numbers that a claim can measure, and tensors that a method learned.

A figure is a `[[claims.figures]]` table with a `kind`, the fields of that kind's class, and a `caption` where the
default caption of the kind is not enough. `task` and the entries of `methods` are selections as in a claim's checks; a
method's table may also hold a `label`. Without `methods`, all methods of the suite are drawn. `published` holds numbers
of a paper, drawn as unconnected marks: a table, or a list of tables, with `values`, `label`, and `shots` or `x`.

The kinds shots, along, candidates, spread and simplex draw scores. The kinds latents, spectrum, cosines, margins and
curves draw what methods learned. For example figures = [{ kind = "shots", methods = ["rfm", "shared"] }].
"""

from __future__ import annotations

from harness.claims.figures.of_learning import CosinesFigure, CurvesFigure, LatentsFigure, MarginsFigure, SpectrumFigure
from harness.claims.figures.of_scores import CandidatesFigure, ShotsFigure, SimplexFigure, SpreadFigure, SweepFigure
from harness.claims.figures.parts import ClaimFigure
from harness.claims.results import NoNumberError, Results
from harness.claims.schema import Claim, dataclass_from_table
from harness.errors import UserError, did_you_mean
from harness.report.plots import draw_svg
from harness.trials.suite import Suite


def figures_of_claim(claim: Claim, results: Results) -> list[tuple[str, str]]:
    """Return the caption and SVG of each figure of a claim.

    Where all trials are missing, the caption says so and the SVG is empty. The default captions of a claim's figures also
    name the fields in which their tasks differ.
    """
    made = read_figures(claim)
    wanted = [{"name": f.task} if isinstance(f.task, str) else f.task or {} for f in made]
    differ = [key for key in dict.fromkeys(key for task in wanted for key in task) if _values_differ(wanted, key)]
    found = []
    for figure, task in zip(made, wanted, strict=True):
        setting = ", ".join(f"{_readable(key)} {_readable(task[key])}" for key in differ if key in task)
        found.append(captioned_figure(figure, results, f" Task: {setting}." if setting and not figure.caption else ""))
    return found


def _values_differ(tables: list[dict], key: str) -> bool:
    return any(table.get(key) != tables[0].get(key) for table in tables)


def _readable(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def captioned_figure(made: ClaimFigure, results: Results, of: str = "") -> tuple[str, str]:
    """Return a figure's caption and SVG.

    of: a sentence that is added to the caption. The caption also says what is not drawn. Where nothing can be drawn, the
    caption says why, and the SVG is empty.
    """
    missing: list[str] = []
    try:
        svg = draw_svg(lambda figure: missing.extend(made.draw_figure(figure, results)), made.size_inches(results))
    except NoNumberError as why:
        return f"No figure: {why}.", ""
    not_drawn = f" Not drawn: {'; '.join(dict.fromkeys(missing))}." if missing else ""
    return (made.caption or made.default_caption()) + of + not_drawn, svg


def read_figures(claim: Claim) -> list[ClaimFigure]:
    """Read a claim's figures. Raises UserError for unknown kinds, unknown keys and wrong types."""
    found = []
    for i, table in enumerate(claim.figures):
        where, kind = f"claim {claim.id}, figure {i + 1}", str(table.get("kind"))
        if kind not in FIGURE_KINDS:
            wrong = f"there is no kind of figure called {kind!r}" if "kind" in table else "`kind` is missing"
            raise UserError(f"{where}: {wrong}", did_you_mean(kind, FIGURE_KINDS, f"one of {', '.join(FIGURE_KINDS)}"))
        made = dataclass_from_table(FIGURE_KINDS[kind], {k: v for k, v in table.items() if k != "kind"}, where)
        if any(bool(series.shots) != isinstance(made, ShotsFigure) for series in getattr(made, "published", ())):
            raise UserError(
                f"{where}: `published` has the wrong axis", "give `shots` for a figure of kind shots, `x` for others"
            )
        found.append(made)
    return found


def check_figures(suite: Suite, claims: tuple[Claim, ...]) -> None:
    """Raise UserError where a figure selects something that its suite lacks.

    The figures are drawn from a suite that has not run, so each ends at its first missing trial.
    """
    for claim in claims:
        try:
            figures_of_claim(claim, Results.of_unrun_suite(suite))
        except UserError as mistake:
            raise UserError(f"{suite.name}: a figure of {claim.id}: {mistake.message}", mistake.hint) from None


FIGURE_KINDS: dict[str, type[ClaimFigure]] = {
    "shots": ShotsFigure,
    "along": SweepFigure,
    "candidates": CandidatesFigure,
    "spread": SpreadFigure,
    "latents": LatentsFigure,
    "simplex": SimplexFigure,
    "spectrum": SpectrumFigure,
    "cosines": CosinesFigure,
    "margins": MarginsFigure,
    "curves": CurvesFigure,
}
