"""Time a board's page in a browser: until it can be used, and until a sorted table is shown again.

    python tests/benchmarks/open_page.py STORE/boards/SUITE.html

The page is opened five times, each time in a new Chromium; the medians are in milliseconds.
"""

import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.browser import in_browser

TIMES = """
    const usable = readyAt;
    const form = document.getElementById("filters");
    form.elements.shots.value = "every";
    const table = jQuery("#results").DataTable();
    table.draw();
    const times = [6, 0, 7, 2, 13].map((column) => {
        const start = performance.now();
        table.order([column, "desc"]).draw();
        document.body.getBoundingClientRect();
        return performance.now() - start;
    });
    return [usable, times.sort((a, b) => a - b)[2]];"""

if __name__ == "__main__":
    page = Path(sys.argv[1])
    usable, sort = (median(column) for column in zip(*(in_browser(page, TIMES)[0] for _ in range(5)), strict=True))
    print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB, usable after {usable:.0f} ms, sorted in {sort:.0f} ms")
