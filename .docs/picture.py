"""The picture in README.md: the first figure of the leaderboard's page.

MANYMINDS_DATA=DIR python .docs/picture.py STORE    # after `manyminds run jobs/suites/leaderboard.toml --store STORE`
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness.board.make import make_board
from harness.registry import PROJECT_ROOT
from harness.store.store import Store
from harness.trials.plan import make_plan
from harness.trials.suite import read_suite

PICTURE = PROJECT_ROOT / ".docs" / "leaderboard.svg"


def first_figure(page: str) -> str:
    """Return the SVG of a page's first figure, as a file of its own. Raises ValueError where the page has none."""
    found = re.search(r'<div class="chart" data-chart="across-0">(<svg.*?</svg>)', page, re.DOTALL)
    if found is None:
        raise ValueError("the page has no figure across tasks, which needs at least three tasks")
    return f"{found[1]}\n"


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        sys.exit(__doc__)
    from harness.report.page.html import published_page

    store = Store(Path(sys.argv[1] if len(sys.argv) > 1 else "store"))
    plan = make_plan(read_suite(PROJECT_ROOT / "jobs" / "suites" / "leaderboard.toml"), store)
    PICTURE.write_text(first_figure(published_page(make_board(plan, store))), "utf-8")
