"""The board in README.md: the task snacks of jobs/suites/people.toml, as `manyminds run` prints it.

MANYMINDS_DATA=DIR python .docs/board.py [STORE]    # runs what is missing, and writes the board into README.md
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
from pathlib import Path

from harness.api import run_suite
from harness.board.board import Board
from harness.registry import PROJECT_ROOT
from harness.report.terminal import print_board

README = PROJECT_ROOT / "README.md"
START, END = "`make readme` writes it again -->\n```text\n", "```\n<!-- end of board -->\n"


def snacks_board(store: Path) -> str:
    """Return the lines of the board of `snacks`, running what the store lacks of it."""
    result = run_suite(PROJECT_ROOT / "jobs" / "suites" / "people.toml", store)
    task = next(task for task in result.board.tasks if task.task.name == "snacks")
    printed = io.StringIO()
    os.environ["COLUMNS"] = "120"
    with contextlib.redirect_stdout(printed):
        print_board(Board(result.plan.suite, (dataclasses.replace(task, flags=()),)))  # flags: of this working tree
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def board_in_readme() -> str:
    """Return the board that README.md shows."""
    return README.read_text("utf-8").partition(START)[2].partition(END)[0]


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    text = README.read_text("utf-8")
    found = snacks_board(Path(sys.argv[1] if len(sys.argv) > 1 else "store"))
    before, after = text.partition(START)[0], text.partition(END)[2]
    README.write_text(before + START + found + END + after, "utf-8")
