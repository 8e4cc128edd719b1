"""Time a board's page in a browser: until it can be used, and until a sorted table is shown again.

    python tests/benchmarks/open_page.py STORE/boards/SUITE.html

The page is opened five times in a new Chromium; each row shows the medians in milliseconds.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import aiohttp

USABLE = "new Promise((f) => { const t = setInterval(() => { if (document.body?.dataset.ready) { clearInterval(t); f(performance.now()); } }, 5); })"
SORT = """(() => {
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
    return times.sort((a, b) => a - b)[2];
})()"""


async def opened(page: Path) -> tuple[float, float]:
    """Return the milliseconds until the page can be used, and the median of five sorted tables."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("there is no Chromium here")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = subprocess.Popen(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
             "--window-size=1280,1000", f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            while not port_file.exists() or not port_file.read_text():
                await asyncio.sleep(0.05)
            port = port_file.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tab = next(t for t in json.loads(await answer.text()) if t["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:

                    async def call(number: int, method: str, **params: object) -> dict:
                        await socket.send_json({"id": number, "method": method, "params": params})
                        while True:
                            told = await socket.receive_json()
                            if told.get("id") == number:
                                return told["result"]

                    await call(1, "Page.navigate", url=page.resolve().as_uri())
                    usable = await call(2, "Runtime.evaluate", expression=USABLE, awaitPromise=True, returnByValue=True)
                    sort = await call(3, "Runtime.evaluate", expression=SORT, returnByValue=True)
            return usable["result"]["value"], sort["result"]["value"]
        finally:
            running.kill()
            running.wait()


if __name__ == "__main__":
    page = Path(sys.argv[1])
    times = [asyncio.run(opened(page)) for _ in range(5)]
    usable, sort = (median(column) for column in zip(*times, strict=True))
    print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB, usable after {usable:.0f} ms, sorted in {sort:.0f} ms")
