"""`manyminds reproduce`: the suites of a paper run, and every claim printed and drawn with what was found."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.claims import FOLDER, Claim, read_claims
from harness.errors import Missing, Mistake
from harness.figures import check_figures, figures, read_figures
from harness.inference.jobs import Job
from harness.judge import (
    CANNOT,
    CONDITION,
    HOLDS,
    NOT,
    UNKNOWN,
    Found,
    Judged,
    Results,
    check_panels,
    check_selections,
    judge,
)
from harness.report.words import number
from harness.store.store import Store
from harness.trials.plan import make_plan
from harness.trials.suite import Suite, load_toml, read_suite
from harness.trials.trial import Trial

COLORS = {HOLDS: "green", CONDITION: "green", NOT: "red", UNKNOWN: "yellow", CANNOT: "dim"}


@dataclass(frozen=True, eq=False)
class Chapter:
    """Claims of one suite with its results, or why there are none."""

    paper: str
    suite: Suite
    claims: tuple[Claim, ...]
    results: Results | None
    missing: Missing | None = None


def claims_of(file: Path) -> tuple[str, tuple[Claim, ...]]:
    """The paper and the claims of a suite file, with every key known, those of figures as well."""
    paper, claims = read_claims(file)
    for claim in claims:
        try:
            read_figures(claim)
        except Mistake as mistake:
            raise Mistake(f"{file}: {mistake.message}", mistake.hint) from None
    return paper, claims


def catalogue(folder: Path = FOLDER) -> dict[Path, tuple[str, tuple[Claim, ...]]]:
    """Every suite file with claims -> its paper and its claims."""
    found = {file: claims_of(file) for file in sorted(folder.glob("*.toml"))}
    files: dict[str, Path] = {}
    for file, (_, claims) in found.items():
        for claim in claims:
            if (other := files.setdefault(claim.id, file)) != file:
                raise Mistake(f"{file}: {other.name} has a claim {claim.id} already", "give each an id of its own")
    return found


def chosen(names: list[str], folder: Path = FOLDER) -> dict[Path, set[str]]:
    """The suite files, and the ids of the claims, of papers, claims and files of those names; without any, all.

    Of a file whose claims are named too, those alone.
    """
    known = catalogue(folder)
    if not names:
        return {file: {claim.id for claim in claims} for file, (_, claims) in known.items()}
    shipped = {file.resolve(): file for file in known}
    paths = [Path(name).absolute() for name in names if name.endswith(".toml")]
    own = {file: claims_of(file) for file in (shipped.get(path.resolve(), path) for path in paths)}
    for file, (_, claims) in own.items():
        if not claims:
            raise Mistake(f"{file} has no claims", "add a [[claims]] table: harness/claims.py says what it holds")
    found: dict[Path, set[str]] = {}
    for name in [name for name in names if not name.endswith(".toml")]:
        asked = {file: {c.id for c in claims if c.id == name} for file, (_, claims) in own.items()}
        if not any(asked.values()):
            asked = {
                file: {c.id for c in claims if name in (paper, file.stem, c.id)}
                for file, (paper, claims) in known.items()
            }
        if not any(asked.values()):
            papers = sorted({paper for paper, _ in known.values()})
            ids = [c.id for _, claims in [*own.values(), *known.values()] for c in claims]
            lower = {word.lower(): word for word in [*papers, *(file.stem for file in known), *ids]}
            near = difflib.get_close_matches(name.lower(), lower, n=1)
            raise Mistake(
                f"there is no paper or claim {name!r}",
                f"did you mean {lower[near[0]]!r}?"
                if near
                else f"papers: {', '.join(papers)}; or a claim's id, such as N1",
            )
        for file, ids in asked.items():
            if ids:
                found.setdefault(file, set()).update(ids)
    for file, (_, claims) in own.items():
        found.setdefault(file, {c.id for c in claims})
    stems = [file.stem for file in found]
    if twice := [file for file in found if stems.count(file.stem) > 1]:
        raise Mistake(f"two suites are called {twice[0].stem}: {twice[0]} and {twice[1]}", "rename one of the files")
    return found


def chapters(
    wanted: dict[Path, set[str]],
    store: Store,
    quick: bool,
    prepared: Callable[[], object] = lambda: None,
    make: Callable[[list[Job]], object] | None = None,
) -> list[Chapter]:
    """Plans the suites of the claims wanted; where a task's data is not at hand the chapter says so.

    prepared, make: as for harness.trials.plan.make_plan.

    Raises Mistake for all that can be known to be wrong before anything is prepared, and where all data is missing.
    """
    found, read = [], []
    for file, ids in wanted.items():
        paper, claims = claims_of(file)
        suite = read_suite(file, quick)
        check_selections(suite, claims)
        check_figures(suite, claims)
        read.append((paper, suite, tuple(c for c in claims if c.id in ids)))
    for paper, suite, claims in read:
        try:
            results = Results(make_plan(suite, store, prepared, make), store)
        except Missing as missing:
            found.append(Chapter(paper, suite, claims, None, missing))
            continue
        check_panels(results, claims)
        found.append(Chapter(paper, suite, claims, results))
    if all(part.missing and not claim.cannot for part in found for claim in part.claims):
        raise found[0].missing
    return found


def n_prepared(files: Iterable[Path], quick: bool) -> int:
    suites = [read_suite(file, quick) for file in files]
    return sum(len(s.tasks) * len(s.seeds) for s in suites)


def trials_of(parts: list[Chapter]) -> list[Trial]:
    """Every trial once: suites share some."""
    return list({t.key: t for part in parts if part.results for t in part.results.plan.trials}.values())


def verdicts(parts: list[Chapter]) -> list[Judged]:
    """Every claim of the chapters, judged by what is finished."""
    found = []
    for part in parts:
        for claim in part.claims:
            if claim.cannot:
                found.append(Judged(claim, part.paper, part.suite.name, CANNOT, claim.cannot))
            elif missing := part.missing:
                found.append(
                    Judged(claim, part.paper, part.suite.name, UNKNOWN, f"{missing.message} (hint: {missing.hint})")
                )
            else:
                found.append(judge(claim, part.paper, part.results))
    return found


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
    if found.low is None:
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
        loader=PackageLoader("harness", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = {part.suite.name: part.results for part in parts if part.results}
    words = ["claims", *dict.fromkeys(map(_page_word, names)), *["quick"] * quick]
    path = store.root / "boards" / f"{'-'.join(words)}.html"
    html = page.get_template("claims.html").render(
        found=found,
        quick=quick,
        figure=figure,
        limits=limits,
        expected=expected,
        counts={v: sum(j.verdict == v for j in found) for v in COLORS},
        figures=lambda judged: figures(judged.claim, results[judged.suite]) if judged.suite in results else [],
    )
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(html)
    os.replace(part, path)
    return path


def _page_word(name: str) -> str:
    path = Path(name).resolve()
    if not name.endswith(".toml") or path.parent == FOLDER:
        return path.stem
    return f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def has_quick(file: Path) -> bool:
    return "quick" in load_toml(file)


def title_of(file: Path) -> str:
    return str(load_toml(file).get("title", file.stem))
