"""A headless Chromium for tests and benchmarks of pages, led by the DevTools protocol.

A window of headless Chromium is at least 500 px wide, so narrow screens are emulated.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
READY = "new Promise((f) => { const t = setInterval(() => { if (document.body?.dataset.ready) { clearInterval(t); f(globalThis.readyAt = performance.now()); } }, 5); })"


def in_browser(page: Path, script: str, fragment: str = "", width: int = 1280) -> tuple[Any, list[str]]:
    """Open a board's page, wait until it is ready, and return what `script` returns there, and the errors of the console.

    script: the body of an async function, which the page's security policy does not concern.  width: in pixels.
    """

    async def led() -> tuple[Any, list[str]]:
        async with opened_tab() as (call, events):
            for domain in ("Runtime", "Log", "Page"):
                await call(f"{domain}.enable")
            size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
            await call("Emulation.setDeviceMetricsOverride", **size)
            await call("Page.navigate", url=page.resolve().as_uri() + fragment)
            await evaluate(call, READY)
            found = await evaluate(call, f"(async () => {{ {script} }})()")
            return found, [text for text in map(_error_text, events) if text]

    return asyncio.run(led())


@asynccontextmanager
async def opened_tab() -> AsyncIterator[tuple[Callable, list[dict]]]:
    """Start a browser of its own; yield a function that calls a method of its tab, and the list of the tab's events."""
    if BROWSER is None:
        raise RuntimeError("there is no Chromium here")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = subprocess.Popen(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
             "--window-size=1280,1000", f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            async with asyncio.timeout(60):
                while not port_file.exists() or not port_file.read_text():
                    await asyncio.sleep(0.05)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port_file.read_text().split()[0]}/json/list") as answer:
                    tab = next(t for t in json.loads(await answer.text()) if t["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    events: list[dict] = []
                    count = 0

                    async def call(method: str, **params: object) -> dict:
                        nonlocal count
                        count += 1
                        await socket.send_json({"id": count, "method": method, "params": params})
                        async with asyncio.timeout(60):
                            while (told := await socket.receive_json()).get("id") != count:
                                events.append(told)
                        return told["result"]

                    yield call, events
        finally:
            running.kill()
            running.wait()


async def evaluate(call: Callable, expression: str) -> Any:
    """Return the value of a JavaScript expression in the tab, awaited; raise RuntimeError where it throws."""
    told = await call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in told:
        raise RuntimeError(told["exceptionDetails"]["exception"].get("description", told["exceptionDetails"]["text"]))
    return told["result"].get("value")


def _error_text(event: dict) -> str:
    """Return the text of an event that is an error on the console; "" for other events."""
    told = event.get("params", {})
    if event["method"] == "Runtime.exceptionThrown":
        return json.dumps(told["exceptionDetails"])
    if event["method"] == "Log.entryAdded" and told["entry"]["level"] == "error":
        return told["entry"]["text"]
    return json.dumps(told["args"]) if event["method"] == "Runtime.consoleAPICalled" and told["type"] == "error" else ""
