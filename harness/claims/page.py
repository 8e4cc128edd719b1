"""Verdicts on claims, in a terminal and on a page."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.atomic import write_whole
from harness.claims.figures.kinds import figures
from harness.claims.judge import (
    CANNOT,
    CONDITION,
    HOLDS,
    NOT,
    UNKNOWN,
    Found,
    Judged,
)
from harness.claims.reproduce import Chapter
from harness.claims.schema import FOLDER
from harness.report.words import number
from harness.store.store import Store

COLORS = {HOLDS: "green", CONDITION: "green", NOT: "red", UNKNOWN: "yellow", CANNOT: "dim"}


def print_verdicts(found: list[Judged]) -> None:
    """Every claim with its source, the published value, what was found and the controls, on stdout."""
    console = Console(highlight=False, emoji=False, width=None if Console().is_terminal else 120)
    for judged in found:
        claim = judged.claim
        color = COLORS[judged.verdict]
        title = f"\n[bold]{escape(claim.id)}[/bold]  [{color}]{judged.verdict}[/{color}]  {escape(claim.title)}"
        console.print(title, soft_wrap=True)
        for text in told(judged):
            console.print(f"    {escape(text)}", soft_wrap=True)
        names = [f"{c.says} ({c.when})" if c.when else c.says for c in judged.checks + judged.beside]
        width = max(map(len, names), default=0)
        for i, (name, check) in enumerate(zip(names, judged.checks + judged.beside, strict=True)):
            text = escape(f"{name:{width}}  {line(check)}")
            console.print(f"    {text if i < len(judged.checks) else f'[dim]{text}[/dim]'}", soft_wrap=True)
    counts = {v: sum(j.verdict == v for j in found) for v in COLORS}
    console.print("\n" + ", ".join(f"{n} {v}" for v, n in counts.items() if n))


def told(judged: Judged) -> list[str]:
    """Source, published value, condition and note."""
    claim = judged.claim
    lines = [f"{claim.source}", f"published: {claim.published}"]
    if judged.condition:
        lines.append(f"{'condition' if judged.verdict == CONDITION else 'because'}: {judged.condition}")
    return lines + ([f"note: {claim.note}"] if claim.note else [])


def line(found: Found) -> str:
    """`.931 (.926 .936)  expected .840 to 1.000  holds`."""
    if found.value is None:
        return f"no number: {found.note}"
    text = f"{figure(found.value)}{limits(found)}"
    if found.expected is not None:
        text += f"  expected {expected(found)}  {found.verdict}"
    return text + (f"  [{found.note}]" if found.note else "")


def limits(found: Found) -> str:
    """` (.926 .936)`; with the level where it is not 95 %."""
    if found.low is None or found.high is None:
        return ""
    level = "" if found.level == 0.95 else f"; {100 * found.level:.3g} %"
    return f" ({figure(found.low)} {figure(found.high)}{level})"


def figure(value: float) -> str:
    """`.931`, `-.00023`, `2,104`, `∞`."""
    if abs(value) == float("inf"):
        return "∞" if value > 0 else "-∞"
    if abs(value) < 1e-5:  # no more than rounding, and no sign
        value = 0.0
    if 0 < abs(value) < 5e-4:
        return number(value, digits=1 - math.floor(math.log10(abs(value))))
    return number(value) if abs(value) < 1000 else f"{value:,.0f}"


def expected(found: Found) -> str:
    """`.840 or more`, `.480 to .520 (±.010)`."""
    if found.expected is None:
        return ""
    low, high = found.expected
    if high == float("inf"):
        text = f"{figure(low)} or more"
    elif low == float("-inf"):
        text = f"{figure(high)} or less"
    else:
        text = f"{figure(low)} to {figure(high)}"
    return text + (f" (±{number(found.tolerance)})" if found.tolerance >= 0.0005 else "")


def write_page(found: list[Judged], parts: list[Chapter], store: Store, names: list[str], quick: bool) -> Path:
    """Writes every claim with its figures to `boards/claims.html` in the store and returns that path.

    The names that were asked for, if not all, and `quick` are part of the file's name: no page replaces a fuller one.
    A suite file of one's own adds a digest of where it lies.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    page = Environment(
        loader=PackageLoader("harness.claims", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = {part.suite.name: part.results for part in parts if part.results}
    words = ["claims", *dict.fromkeys(map(_page_word, names)), *["quick"] * quick]
    path = store.board("-".join(words))
    html = page.get_template("page.html").render(
        found=found,
        quick=quick,
        figure=figure,
        limits=limits,
        expected=expected,
        counts={v: sum(j.verdict == v for j in found) for v in COLORS},
        figures=lambda judged: figures(judged.claim, results[judged.suite]) if judged.suite in results else [],
    )
    write_whole(path, html)
    return path


def _page_word(name: str) -> str:
    path = Path(name).resolve()
    if not name.endswith(".toml") or path.parent == FOLDER:
        return path.stem
    return f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"
