"""BibTeX of the works that a board's tasks and methods come from, and of the libraries that computed it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from harness.board.board import Board

REFERENCES_FILE = Path(__file__).with_name("references.bib")
CITED_LIBRARIES = ("torch", "scikit-learn", "scipy", "numpy", "polars", "ray", "mlflow", "transformers")


def bibtex_of_board(board: Board) -> str:
    """Return BibTeX entries of all works and libraries behind a board, each once."""
    papers = [(m.variant_of or m).paper for m in board.suite.methods] + [task.task.paper for task in board.tasks]
    return "\n\n".join([*works_of(papers), *map(_library_entry, CITED_LIBRARIES)]) + "\n"


def works_of(papers: Iterable[str]) -> list[str]:
    """Return the entries of `paper` strings that the references hold, in the order of their keys."""
    known = references()
    return [known[key] for key in sorted({citation_key(paper) for paper in papers if paper}) if key in known]


def citation_key(paper: str) -> str:
    """Return the key of a paper: `Bose et al. 2025, LoRe` is bose2025lore, and `Train 2009` is train2009."""
    parts = re.fullmatch(r"(.*?) (\d{4})(?:, (.*))?", paper)
    authors, year, title = parts.groups() if parts else (paper, "", "")
    first = re.split(r" et al\.| and ", authors)[0]
    word = (title or "").split(" ")[0]
    return re.sub(r"\W", "", f"{first}{year}{word}").lower()


def link_of_paper(paper: str) -> str:
    """Return the address of a `paper` that is on arXiv; "" for others."""
    found = re.search(r"arXiv:(\d{4}\.\d{5})", references().get(citation_key(paper), ""))
    return f"https://arxiv.org/abs/{found[1]}" if found else ""


def references() -> dict[str, str]:
    """Return the BibTeX entries of the references by their keys."""
    entries = re.split(r"^(?=@)", REFERENCES_FILE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry.strip() for entry in entries}


def _library_entry(name: str) -> str:
    about = metadata.metadata(name)
    pages = about.get_all("Home-page", []) + [line.rpartition(", ")[2] for line in about.get_all("Project-URL", [])]
    url = next((f", url = {{{page}}}" for page in pages if page.startswith("http")), "")
    return f"@software{{{name},\n  title = {{{name}}}, version = {{{about['Version'].partition('+')[0]}}}{url}}}"
