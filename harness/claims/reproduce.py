"""`manyminds reproduce`: runs the suites of a paper, and judges its claims by the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.claims.figures.kinds import check_figures, read_figures
from harness.claims.judge import (
    CANNOT_TELL,
    NOT_TESTABLE,
    JudgedClaim,
    check_panels,
    check_selections,
    judge_claim,
)
from harness.claims.register import describe_registration
from harness.claims.results import Results
from harness.claims.schema import CLAIMS_FOLDER, Claim, read_claims
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.store.store import Store
from harness.trials.plan import make_plan
from harness.trials.suite import Suite, load_toml, read_suite
from harness.trials.trial import Trial

if TYPE_CHECKING:
    from harness.inference.jobs import Job


@dataclass(frozen=True, eq=False)
class Chapter:
    """The claims of one suite with its results, or with the error that says why there are none."""

    paper: str
    suite: Suite
    claims: tuple[Claim, ...]
    results: Results | None
    missing: UnavailableError | None = None


def read_suite_claims(file: Path) -> tuple[str, tuple[Claim, ...]]:
    """Read a suite file's paper and its claims, including their figures. Raises UserError for wrong entries."""
    paper, claims = read_claims(file)
    for claim in claims:
        try:
            read_figures(claim)
        except UserError as mistake:
            raise UserError(f"{file}: {mistake.message}", mistake.hint) from None
    return paper, claims


def shipped_claims(folder: Path = CLAIMS_FOLDER) -> dict[Path, tuple[str, tuple[Claim, ...]]]:
    """Return the paper and the claims of every suite file in the folder."""
    found = {file: read_suite_claims(file) for file in sorted(folder.glob("*.toml"))}
    files: dict[str, Path] = {}
    for file, (_, claims) in found.items():
        for claim in claims:
            if (other := files.setdefault(claim.id, file)) != file:
                raise UserError(f"{file}: {other.name} already has a claim {claim.id}", "give each claim its own id")
    return found


def choose_claims(names: list[str], folder: Path = CLAIMS_FOLDER) -> dict[Path, set[str]]:
    """Return the selected suite files, each with the ids of its selected claims.

    names: papers, names of shipped suites, ids of claims, and paths of suite files. Without names, all claims are
    selected. If a suite file and some of its claims are named, only those claims of the file are selected.
    Raises UserError for unknown names, and for two suites of one name.
    """
    known = shipped_claims(folder)
    if not names:
        return {file: {claim.id for claim in claims} for file, (_, claims) in known.items()}
    shipped = {file.resolve(): file for file in known}
    paths = [Path(name).absolute() for name in names if name.lower().endswith(".toml")]
    own = {file: read_suite_claims(file) for file in (shipped.get(path.resolve(), path) for path in paths)}
    for file, (_, claims) in own.items():
        if not claims:
            raise UserError(
                f"{file} has no claims", "add a [[claims]] table; harness/claims/schema.py describes its fields"
            )
    found: dict[Path, set[str]] = {}
    for name in [name for name in names if not name.lower().endswith(".toml")]:
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
            every = f"papers: {', '.join(papers)}; or a claim's id, such as N1"
            raise UserError(
                f"there is no paper or claim {name!r}", did_you_mean(name.lower(), lower, every, shown=lower)
            )
        for file, own_ids in asked.items():
            if own_ids:
                found.setdefault(file, set()).update(own_ids)
    for file, (_, claims) in own.items():
        found.setdefault(file, {c.id for c in claims})
    stems = [file.stem for file in found]
    if twice := [file for file in found if stems.count(file.stem) > 1]:
        raise UserError(f"two suites are called {twice[0].stem}: {twice[0]} and {twice[1]}", "rename one of the files")
    return found


def plan_chapters(
    wanted: dict[Path, set[str]],
    store: Store,
    quick: bool,
    on_prepared: Callable[[], object] = lambda: None,
    make: Callable[[list[Job]], None] | None = None,
) -> list[Chapter]:
    """Plan the suites of the wanted claims. Where a task's data is unavailable, the chapter keeps the error.

    on_prepared, make: as for harness.trials.plan.make_plan.

    Raises UserError for wrong selections before anything is prepared, and UnavailableError where every wanted
    claim lacks its data.
    """
    found, read = [], []
    for file, ids in wanted.items():
        paper, claims = read_suite_claims(file)
        suite = read_suite(file, quick)
        check_selections(suite, claims)
        check_figures(suite, claims)
        read.append((paper, suite, tuple(c for c in claims if c.id in ids)))
    for paper, suite, claims in read:
        try:
            results = Results(make_plan(suite, store, on_prepared, make), store)
        except UnavailableError as missing:
            found.append(Chapter(paper, suite, claims, None, missing))
            continue
        check_panels(results, claims)
        found.append(Chapter(paper, suite, claims, results))
    first = next((part.missing for part in found if part.missing), None)
    if first and all(part.missing and not claim.cannot for part in found for claim in part.claims):
        raise first
    return found


def count_tasks_to_prepare(files: Iterable[Path], quick: bool) -> int:
    """Return the number of tasks times seeds in the suite files."""
    suites = [read_suite(file, quick) for file in files]
    return sum(len(s.tasks) * len(s.seeds) for s in suites)


def trials_of_chapters(parts: list[Chapter]) -> list[Trial]:
    """Return every trial of the chapters once, since suites share some."""
    return list({t.key: t for part in parts if part.results for t in part.results.plan.trials}.values())


def judge_chapters(parts: list[Chapter]) -> list[JudgedClaim]:
    """Judge every claim of the chapters by the finished trials."""
    found = []
    for part in parts:
        for claim in part.claims:
            if part.results:
                judged = judge_claim(claim, part.paper, part.results)
            elif claim.cannot:
                judged = JudgedClaim(claim, part.paper, part.suite.name, NOT_TESTABLE, claim.cannot)
            else:
                why = f"{part.missing.message} (hint: {part.missing.hint})" if part.missing else ""
                judged = JudgedClaim(claim, part.paper, part.suite.name, CANNOT_TELL, why)
            if claim.checks:
                judged = replace(judged, registered=describe_registration(Path(part.suite.file), claim.id))
            found.append(judged)
    return found


def has_quick_settings(file: Path) -> bool:
    """Return whether the suite file has a `quick` table."""
    return "quick" in load_toml(file)


def suite_title(file: Path) -> str:
    """Return the suite file's title, or its name where it has none."""
    return str(load_toml(file).get("title", file.stem))
