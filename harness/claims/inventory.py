"""Inventory of the papers: everything that a paper has in it, how faithfully it is done here, and which claim holds it.

A paper's inventory is a TOML file in jobs/suites/claims/papers, named as the `paper` of its claims. Its `title` names the
paper and its `note`, if any, says what readers should know of it. Each system, method, experiment, table, figure and
theorem of the paper is an `[[entries]]` table with the fields of `InventoryEntry`. Background, related work and
conclusions are left out. A claim is in the inventory of its own paper only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.claims.schema import CLAIMS_FOLDER, dataclass_from_table, read_claims
from harness.errors import UserError, did_you_mean, error_prefix
from harness.registry import PROJECT_ROOT
from harness.trials.suite import load_toml

PAPERS_FOLDER = CLAIMS_FOLDER / "papers"  # a folder of its own, because every file of CLAIMS_FOLDER is a suite
ENTRY_KINDS = ("system", "method", "theorem", "experiment", "table", "figure")
FAITHFUL, PARTIAL, ON_A_STAND_IN = "faithful", "partial", "on a stand-in"
NOT_DONE, NOT_POSSIBLE = "not done", "not possible here"
STATE_MEANINGS = {  # state of an entry -> what it means
    FAITHFUL: "as in the paper, on its own material where it needs any",
    PARTIAL: "a part is missing or differs, as the reason says",
    ON_A_STAND_IN: "something else stands in for the paper's data, models or people",
    NOT_DONE: "it could be done here, and nothing does it yet, for the reason given",
    NOT_POSSIBLE: "nothing here can do it, for the reason given",
}


@dataclass(frozen=True)
class InventoryEntry:
    """One thing that a paper has in it."""

    what: str  # a description in plain words
    where: str  # its places in the paper, such as `section 4.2, figure 2a`
    kind: str  # one of ENTRY_KINDS
    state: str  # one of STATE_MEANINGS
    why: str = ""  # what is missing, differs or stands in; needed unless the entry is faithful
    claims: tuple[str, ...] = ()  # ids of the claims that hold it
    code: tuple[str, ...] = ()  # files that do it, from the project's root

    def __post_init__(self) -> None:
        for name, known in (("kind", ENTRY_KINDS), ("state", tuple(STATE_MEANINGS))):
            if (given := getattr(self, name)) not in known:
                raise UserError(
                    f"there is no {name} {given!r}", did_you_mean(given, known, f"one of: {', '.join(known)}")
                )
        if self.state != FAITHFUL and not self.why:
            raise UserError(
                f"{self.what!r} is {self.state}, but the reason is missing", 'why = "what is missing or differs"'
            )
        if self.state not in (NOT_DONE, NOT_POSSIBLE) and not self.claims + self.code:
            raise UserError(
                f"{self.what!r} is {self.state}, but nothing holds it",
                'name its claims or its code: claims = ["N1"], code = ["harness/methods/np_btl.py"]',
            )
        if missing := [name for name in self.code if not (PROJECT_ROOT / name).is_file()]:
            raise UserError(
                f"there is no file {missing[0]}", "code names files from the project's root: harness/methods/np_btl.py"
            )


@dataclass(frozen=True)
class PaperInventory:
    """All entries of a paper, in the paper's order."""

    title: str
    entries: tuple[InventoryEntry, ...]
    note: str = ""


def read_inventories(folder: Path = PAPERS_FOLDER) -> dict[str, PaperInventory]:
    """Return the inventory of every paper, by the name that its claims give the paper.

    Raises UserError for wrong entries, and for claims that the paper does not have.
    """
    claims: dict[str, list[str]] = {}
    for suite in sorted(CLAIMS_FOLDER.glob("*.toml")):
        paper, found = read_claims(suite)
        claims.setdefault(paper, []).extend(claim.id for claim in found)
    inventories = {}
    for file in sorted(folder.glob("*.toml")):
        inventory = dataclass_from_table(PaperInventory, load_toml(file), str(file))
        known = claims.get(file.stem, [])
        with error_prefix(str(file)):
            for entry in inventory.entries:
                if unknown := [name for name in entry.claims if name not in known]:
                    raise UserError(
                        f"{entry.what!r}: {file.stem} has no claim {unknown[0]}",
                        did_you_mean(unknown[0], known, f"its claims: {', '.join(known) or 'none'}"),
                    )
        inventories[file.stem] = inventory
    return inventories
