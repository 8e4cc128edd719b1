"""`manyminds reproduce`: the suites of a paper run, and every claim printed and drawn with what was found."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.claims import (
    CANNOT,
    CONDITION,
    FOLDER,
    HOLDS,
    NOT,
    UNKNOWN,
    Claim,
    Found,
    Judged,
    Results,
    judge,
    read_claims,
)
from harness.figures import figures, read_figures
from harness.mistake import Mistake
from harness.report import number
from harness.store import Store
from harness.suite import Plan, Suite, load_toml, make_plan, read_suite
from harness.trial import Trial

COLORS = {HOLDS: "green", CONDITION: "green", NOT: "red", UNKNOWN: "yellow", CANNOT: "dim"}
QUICK_SEEDS = 3  # the fewest that have an interval


@dataclass(frozen=True, eq=False)
class Chapter:
    """One suite with its claims, and its plan or why there is none."""

    paper: str
    suite: Suite
    claims: tuple[Claim, ...]
    plan: Plan | None = None
    missing: str = ""


def catalogue(folder: Path = FOLDER) -> dict[Path, tuple[str, tuple[Claim, ...]]]:
    """Every suite file with claims -> its paper and its claims."""
    found = {file: read_claims(file) for file in sorted(folder.glob("*.toml"))}
    for _, claims in found.values():
        for claim in claims:
            read_figures(claim)  # a misspelt figure is told before the run, not after it
    return found


def chosen(names: list[str], folder: Path = FOLDER) -> list[Path]:
    """The suite files of the papers, files or claims of those names; without any, all."""
    known = catalogue(folder)
    found: list[Path] = []
    for name in names:
        fits = [f for f, (paper, claims) in known.items() if name in (paper, f.stem, *(c.id for c in claims))]
        if not fits:
            papers = sorted({paper for paper, _ in known.values()})
            near = difflib.get_close_matches(name, [*papers, *(c.id for _, cs in known.values() for c in cs)], n=1)
            raise Mistake(
                f"there is no paper or claim {name!r}",
                f"did you mean {near[0]!r}?" if near else f"papers: {', '.join(papers)}; or a claim's id, such as N1",
            )
        found += [f for f in fits if f not in found]
    return found or list(known)


def chapters(files: list[Path], store: Store, quick: bool, prepared: Callable[[int], object]) -> Iterator[Chapter]:
    """Plans the suites; where a task cannot be prepared (its data is not at hand, say) the chapter says why."""
    for file in files:
        paper, claims = read_claims(file)
        suite = read_suite(file, quick)
        try:
            yield Chapter(paper, suite, claims, make_plan(suite, store, lambda: prepared(1)))
        except Mistake as mistake:
            yield Chapter(paper, suite, claims, missing=f"{mistake.message} (hint: {mistake.hint})")


def n_prepared(files: list[Path], quick: bool) -> int:
    suites = [read_suite(file, quick) for file in files]
    return sum(len(s.tasks) * len(s.seeds) for s in suites)


def trials_of(parts: list[Chapter]) -> list[Trial]:
    """Every trial once: suites share some."""
    return list({t.key: t for part in parts if part.plan for t in part.plan.trials}.values())


def verdicts(parts: list[Chapter], store: Store) -> list[Judged]:
    """Every claim of the chapters, judged by what is finished."""
    found = []
    for part in parts:
        results = Results(part.plan, store) if part.plan else None
        for claim in part.claims:
            if results is None and not claim.cannot:
                found.append(Judged(claim, part.paper, part.suite.name, UNKNOWN, part.missing, (), ()))
            elif results is None:
                found.append(Judged(claim, part.paper, part.suite.name, CANNOT, claim.cannot, (), ()))
            else:
                found.append(judge(claim, part.paper, results))
    return found


def print_verdicts(found: list[Judged]) -> None:
    """Every claim with its source, the published value, what was found and the controls, on stdout."""
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    for judged in found:
        claim = judged.claim
        color = COLORS[judged.verdict]
        title = f"\n[bold]{escape(claim.id)}[/bold]  [{color}]{judged.verdict}[/{color}]  {escape(claim.title)}"
        console.print(title, soft_wrap=True)
        for text in told(judged):
            console.print(f"    {escape(text)}", soft_wrap=True)
        width = max((len(f.says) for f in judged.checks + judged.beside), default=0)
        for check in judged.checks:
            console.print(f"    {escape(f'{check.says:{width}}  {line(check)}')}", soft_wrap=True)
        for check in judged.beside:
            console.print(f"    [dim]{escape(f'{check.says:{width}}  {line(check)}')}[/dim]", soft_wrap=True)
    counts = {v: sum(j.verdict == v for j in found) for v in COLORS}
    console.print("\n" + ", ".join(f"{n} {v}" for v, n in counts.items() if n))


def told(judged: Judged) -> list[str]:
    """Source, published value, condition and note."""
    claim = judged.claim
    lines = [f"{claim.source}", f"published: {claim.published}"]
    if judged.condition:
        lines.append(
            {CONDITION: "condition: ", CANNOT: "because: "}.get(judged.verdict, "because: ") + judged.condition
        )
    return lines + ([f"note: {claim.note}"] if claim.note else [])


def line(found: Found) -> str:
    """`.931 (.926 .936)  expected .840 to 1.000  holds`."""
    if found.value is None:
        return f"no number: {found.note}"
    limits = "" if found.low is None else f" ({figure(found.low)} {figure(found.high)})"
    text = f"{figure(found.value)}{limits}"
    if found.expected is not None:
        text += f"  expected {expected(found)}  {f'{found.when}: ' if found.when else ''}{found.verdict}"
    return text + (f"  [{found.note}]" if found.note else "")


def figure(value: float) -> str:
    """`.931`, `2,104`."""
    return number(value) if abs(value) < 1000 else f"{value:,.0f}"


def expected(found: Found) -> str:
    """`.840 or more`, `.480 to .520 (±.010)`."""
    low, high = found.expected
    if high == float("inf"):
        text = f"{figure(low)} or more"
    elif low == float("-inf"):
        text = f"{figure(high)} or less"
    else:
        text = f"{figure(low)} to {figure(high)}"
    return text + (f" (±{number(found.tolerance)})" if found.tolerance >= 0.0005 else "")


def write_page(found: list[Judged], parts: list[Chapter], store: Store, quick: bool) -> Path:
    """Writes `boards/claims.html` (`claims-quick.html`) in the store: every claim with its figures. Returns its path."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    page = Environment(
        loader=PackageLoader("harness", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = {part.suite.name: Results(part.plan, store) for part in parts if part.plan}
    path = store.root / "boards" / f"claims{'-quick' if quick else ''}.html"
    html = page.get_template("claims.html").render(
        found=found,
        quick=quick,
        figure=figure,
        expected=expected,
        counts={v: sum(j.verdict == v for j in found) for v in COLORS},
        figures=lambda judged: figures(judged.claim, results[judged.suite]) if judged.suite in results else [],
    )
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(html)
    os.replace(part, path)
    return path


def title_of(file: Path) -> str:
    return str(load_toml(file).get("title", file.stem))
