"""Verdicts on claims, in a terminal and on an HTML page, with the inventory of the papers on a page beside it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from harness.atomic import write_atomically
from harness.claims.figures.kinds import figures_of_claim
from harness.claims.inventory import STATE_MEANINGS, PaperInventory, read_inventories
from harness.claims.judge import (
    CANNOT_TELL,
    DOES_NOT_HOLD,
    HOLDS,
    HOLDS_IN_PART,
    NOT_TESTABLE,
    VACUOUS,
    CheckResult,
    JudgedClaim,
)
from harness.claims.reproduce import Chapter
from harness.claims.schema import CLAIMS_FOLDER
from harness.report.words import format_number
from harness.store.store import Store

if TYPE_CHECKING:
    from jinja2 import Template

VERDICT_COLORS = {
    HOLDS: "green",
    HOLDS_IN_PART: "cyan",
    DOES_NOT_HOLD: "red",
    CANNOT_TELL: "yellow",
    VACUOUS: "dim",
    NOT_TESTABLE: "dim",
}


def print_verdicts(found: list[JudgedClaim]) -> None:
    """Print every claim with its source, the published value, its checks and its controls."""
    console = Console(highlight=False, emoji=False, width=None if Console().is_terminal else 120)
    for judged in found:
        claim = judged.claim
        color = VERDICT_COLORS[judged.verdict]
        word = f"{judged.verdict} on a stand-in" if claim.stand_in else judged.verdict
        title = f"\n[bold]{escape(claim.id)}[/bold]  [{color}]{word}[/{color}]  {escape(claim.title)}"
        console.print(title, soft_wrap=True)
        for text in source_lines(judged):
            console.print(f"    {escape(text)}", soft_wrap=True)
        names = [f"{c.says} ({c.part})" if c.part else c.says for c in judged.checks + judged.beside]
        width = max(map(len, names), default=0)
        for i, (name, check) in enumerate(zip(names, judged.checks + judged.beside, strict=True)):
            text = escape(f"{name:{width}}  {format_result(check)}")
            console.print(f"    {text if i < len(judged.checks) else f'[dim]{text}[/dim]'}", soft_wrap=True)
    counts = {v: sum(j.verdict == v for j in found) for v in VERDICT_COLORS}
    console.print("\n" + ", ".join(f"{n} {v}" for v, n in counts.items() if n))


def source_lines(judged: JudgedClaim) -> list[str]:
    """Return lines with the claim's source and published value, what it was judged on, the verdict's reason and the note."""
    claim = judged.claim
    lines = [f"{claim.source}", f"published: {claim.published}", judged.ground]
    if judged.power_note:
        lines.append(f"power: {judged.power_note}")
    if judged.registered:
        lines.append(f"ranges set: {judged.registered}")
    if judged.reason:
        lines.append(f"because: {judged.reason}")
    return lines + ([f"note: {claim.note}"] if claim.note else [])


def format_result(found: CheckResult) -> str:
    """Format a check's result, for example `.931 (.926 .936)  expected .840 to 1.000  holds`."""
    if found.value is None:
        return f"no number: {found.note}"
    text = f"{format_value(found.value)}{format_limits(found)}"
    if found.expected is not None:
        text += f"  expected {format_expected(found)}  {found.verdict}"
        text += "" if found.power is None else f"  (power {found.power:.0%})"
    return text + (f"  [{found.note}]" if found.note else "")


def format_limits(found: CheckResult) -> str:
    """Format limits, for example ` (.926 .936)`, with their level where it is not 95 %."""
    if found.low is None or found.high is None:
        return ""
    level = "" if found.level == 0.95 else f"; {100 * found.level:.3g} %"
    return f" ({format_value(found.low)} {format_value(found.high)}{level})"


def format_value(value: float) -> str:
    """Format a number, for example `.931`, `-.00023`, `2,104`, `∞`."""
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "-∞"
    if abs(value) < 1e-5:  # a rounding error, which should not show a sign
        value = 0.0
    if 0 < abs(value) < 5e-4:
        return format_number(value, digits=1 - math.floor(math.log10(abs(value))))
    return format_number(value) if abs(value) < 1000 else f"{value:,.0f}"


def format_expected(found: CheckResult) -> str:
    """Format an expected range, for example `.840 or more`, `.480 to .520 (±.010)`."""
    if found.expected is None:
        return ""
    low, high = found.expected
    if high == float("inf"):
        text = f"{format_value(low)} or more"
    elif low == float("-inf"):
        text = f"{format_value(high)} or less"
    else:
        text = f"{format_value(low)} to {format_value(high)}"
    return text + (f" (±{format_number(found.tolerance)})" if found.tolerance >= 0.0005 else "")


def write_claims_page(
    found: list[JudgedClaim], parts: list[Chapter], store: Store, names: list[str], quick: bool
) -> Path:
    """Write every claim with its figures to `boards/claims.html` in the store, and return that path.

    The inventory of the papers is written beside it, to `boards/papers.html`.
    The selected names, if not all, and `quick` are part of the files' names, so that a page of some claims does not
    replace the page of all. The name of a suite file that is not shipped is followed by a digest of its path.
    """
    words = [*dict.fromkeys(map(_page_word, names)), *["quick"] * quick]
    path, papers = (store.board_page("-".join([page, *words])) for page in ("claims", "papers"))
    results = {part.suite.name: part.results for part in parts if part.results}
    html = page_template("page.html").render(
        found=found,
        quick=quick,
        papers_page=papers.name,
        format_value=format_value,
        format_limits=format_limits,
        format_expected=format_expected,
        counts={v: sum(j.verdict == v for j in found) for v in VERDICT_COLORS},
        figures=lambda judged: figures_of_claim(judged.claim, results[judged.suite]) if judged.suite in results else [],
    )
    write_atomically(papers, papers_html(read_inventories(), judged_shipped_claims(found, parts), path.name))
    write_atomically(path, html)
    return path


def papers_html(inventories: dict[str, PaperInventory], judged: dict[str, JudgedClaim], claims_page: str) -> str:
    """Return the page of the papers' inventories.

    judged: the claims with a verdict on the page of claims, by id. claims_page: that page's file name.
    """
    counts = {
        paper: {state: sum(entry.state == state for entry in inventory.entries) for state in STATE_MEANINGS}
        for paper, inventory in inventories.items()
    }
    return page_template("papers.html").render(
        inventories=inventories, counts=counts, meanings=STATE_MEANINGS, judged=judged, claims_page=claims_page
    )


def judged_shipped_claims(found: list[JudgedClaim], parts: list[Chapter]) -> dict[str, JudgedClaim]:
    """Return the judged claims of shipped suites by id; a claim of another file may have the same id."""
    shipped = {part.suite.name for part in parts if Path(part.suite.file).resolve().parent == CLAIMS_FOLDER.resolve()}
    return {judged.claim.id: judged for judged in found if judged.suite in shipped}


def page_template(name: str) -> Template:
    """Return a page's template from this folder; what is filled in is escaped."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    return Environment(
        loader=PackageLoader("harness.claims", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def _page_word(name: str) -> str:
    path = Path(name).resolve()
    if not name.lower().endswith(".toml") or path.parent == CLAIMS_FOLDER:
        return path.stem
    return f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
