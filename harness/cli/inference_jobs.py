"""Makes the rows that suites and files lack, on Ray or in this process, and tells what was made."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from harness.cli.terminal import bar, err
from harness.inference.cache import Index
from harness.inference.jobs import Job, make_here
from harness.store.logs import logged_to, run_name
from harness.store.store import Store

MINUTES = 30.0  # for a block of samples or vectors: a thousand samples of a 70B model take about ten


class Enough(Exception):
    """What was asked for is made; the rest is for another verb."""


class Maker:
    """Makes the rows of jobs, on Ray or here, with a progress bar; remembers what was made for `tell`.

    only: the kind of rows to make; where others are needed too, Enough is raised once it is made.
    """

    def __init__(
        self,
        store: Store,
        local: bool,
        workers: int | None = None,
        gpus: int = 1,
        minutes: float = MINUTES,
        only: str = "",
    ) -> None:
        self.store, self.local, self.only = store, local, only
        self.told: list[dict] = []
        self.options: dict[str, Any] = {"workers": workers, "gpus": gpus, "minutes": minutes}

    def index(self, job: Job) -> Index:
        return job.rows(self.store).index()

    def __call__(self, jobs: list[Job]) -> None:
        for job in [job for job in jobs if self.only in ("", job.what)]:
            made = {"what": job.what} | job.identity | self._make(job)
            if job.what == "samples":
                made |= sampled(job.rows(self.store).facts())
            self.told.append(made)
            err.print(summary(made))
        if self.only and any(job.what != self.only for job in jobs):
            raise Enough

    def _make(self, job: Job) -> dict:
        rows = job.rows(self.store)
        with contextlib.ExitStack() as stack:
            stack.enter_context(logged_to(self.store, run_name()))
            steps = []

            def on_start(count: int) -> None:
                err.print(f"{count} {job.what} to make by {job.identity.get('model', job.identity['engine'])}")
                if count:
                    steps.append(stack.enter_context(bar(job.what, count)))

            on: dict[str, Any] = {"on_start": on_start, "on_progress": lambda n: steps[0](n)}
            if self.local:
                return make_here(rows, job.recipe, job.batches(), **on)
            from harness.on_ray.inference import make_on_ray

            return make_on_ray(rows, job.recipe, job.batches(), **self.options, **on)

    def tell(self, as_json: bool) -> None:
        """Where it is; for programs, what was made, and how fast."""
        if as_json:
            print(json.dumps(self.told, indent=1))
        else:
            print(f"{sum(made['rows'] for made in self.told)} rows made, the rest was there, in {self.store.root}")


def sampled(blocks: list[dict]) -> dict:
    """Totals over all blocks of a generator; those from before an interruption too."""
    return {
        name: sum(block.get(name, 0) for block in blocks) for name in ("samples", "stopped", "tokens", "again", "same")
    }


def summary(made: dict) -> str:
    """One line on what was made, and how fast."""
    if not made["rows"]:
        return f"all {made['what']} were there"
    parts = [f"{made['rows']} {made['what']} made, {made['errors']} of them errors"]
    parts.append(f"{made['rows'] / made['seconds']:.1f} a second after {made['start_seconds']:.0f} s of starting")
    if made.get("samples"):
        parts.append(f"{made['stopped'] / made['samples']:.1%} of texts ended by themselves")
        parts.append(f"{made['same']} of {made['again']} prompts asked a second time got the same texts")
    return "; ".join(parts)
