"""Figures of claims: every number drawn is one that a claim can measure, or a tensor that a method learned.

A figure is a `[[claims.figures]]` table with a `kind`, a `caption` where the kind's own does not say enough, and the
fields of the kind's class below. `task` and the entries of `methods` are selections as in a claim's checks; a method's
table may also hold a `label`. Without `methods` all of the suite are drawn. `published`, a table or a list of tables
with `values`, `label`, and `shots` or `x`, holds numbers of a paper; they are drawn as unconnected marks.

Kinds: shots, along, candidates, spread and simplex draw scores; latents, spectrum, cosines, margins and curves what was learned.
For example figures = [{ kind = "shots", methods = ["rfm", "shared"] }].
"""

from __future__ import annotations

from harness.claims.figures.of_learning import Cosines, Curves, Latents, Margins, Spectrum
from harness.claims.figures.of_scores import Along, Candidates, Shots, Simplex, Spread
from harness.claims.figures.parts import Figure
from harness.claims.results import Results, Unfinished
from harness.claims.schema import Claim, read_table
from harness.errors import Mistake, did_you_mean
from harness.report.plots import svg_of
from harness.trials.suite import Suite


def figures(claim: Claim, results: Results) -> list[tuple[str, str]]:
    """Caption and SVG of each figure of a claim; where trials are missing the caption says so and the SVG is empty."""
    made = read_figures(claim)
    wanted = [{"name": f.task} if isinstance(f.task, str) else f.task or {} for f in made]
    differ = [key for key in dict.fromkeys(key for task in wanted for key in task) if _several(wanted, key)]
    found = []
    for figure, task in zip(made, wanted, strict=True):
        told = ", ".join(f"{_words(key)} {_words(task[key])}" for key in differ if key in task)
        found.append(captioned(figure, results, f" Task: {told}." if told and not figure.caption else ""))
    return found


def _several(tables: list[dict], key: str) -> bool:
    return any(table.get(key) != tables[0].get(key) for table in tables)


def _words(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


def captioned(made: Figure, results: Results, of: str = "") -> tuple[str, str]:
    missing: list[str] = []
    try:
        svg = svg_of(lambda figure: missing.extend(made.draw(figure, results)), made.size(results))
    except Unfinished as why:
        return f"No figure: {why}.", ""
    told = f" Not drawn: {'; '.join(dict.fromkeys(missing))}." if missing else ""
    return (made.caption or made.says()) + of + told, svg


def read_figures(claim: Claim) -> list[Figure]:
    """The claim's figures, with every kind and key known. Raises Mistake."""
    found = []
    for i, table in enumerate(claim.figures):
        where, kind = f"claim {claim.id}, figure {i + 1}", str(table.get("kind"))
        if kind not in KINDS:
            wrong = f"there is no kind {kind!r}" if "kind" in table else "it has no kind"
            raise Mistake(f"{where}: {wrong}", did_you_mean(kind, KINDS, f"one of {', '.join(KINDS)}"))
        made = read_table(KINDS[kind], {k: v for k, v in table.items() if k != "kind"}, where)
        if any(bool(series.shots) != isinstance(made, Shots) for series in getattr(made, "published", ())):
            raise Mistake(f"{where}: published lies along the wrong axis", "shots for kind shots, x for others")
        found.append(made)
    return found


def check_figures(suite: Suite, claims: tuple[Claim, ...]) -> None:
    """Raises Mistake where a figure selects what its suite lacks: drawn of nothing, each stops at its first trial."""
    for claim in claims:
        try:
            figures(claim, Results.of_nothing(suite))
        except Mistake as mistake:
            raise Mistake(f"{suite.name}: a figure of {claim.id}: {mistake.message}", mistake.hint) from None


KINDS: dict[str, type[Figure]] = {
    "shots": Shots,
    "along": Along,
    "candidates": Candidates,
    "spread": Spread,
    "latents": Latents,
    "simplex": Simplex,
    "spectrum": Spectrum,
    "cosines": Cosines,
    "margins": Margins,
    "curves": Curves,
}
