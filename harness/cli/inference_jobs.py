"""Runner of inference jobs: makes missing rows for suites and files, on Ray or in this process."""

from __future__ import annotations

from typing import Any

from harness.cli.terminal import print_json, progress_bar, stderr
from harness.inference.cache import RowIndex
from harness.inference.jobs import Job
from harness.store.store import Store

DEFAULT_BLOCK_MINUTES = 30.0  # per block of samples or vectors: a thousand samples of a 70B model take about ten


class WantedRowsMade(Exception):
    """The rows that a verb makes are made. Other rows are missing too, but another verb makes them."""


class JobRunner:
    """A function that makes the rows of jobs, on Ray or in this process, with a progress bar.

    The counts are kept for `print_made`.

    only: the kind of rows to make. If jobs need other kinds too, WantedRowsMade is raised once these rows are made.
    """

    def __init__(
        self,
        store: Store,
        local: bool,
        workers: int | None = None,
        gpus: int = 1,
        minutes: float = DEFAULT_BLOCK_MINUTES,
        only: str = "",
    ) -> None:
        self.store, self.local, self.only = store, local, only
        self.told: list[dict] = []
        self.options: dict[str, Any] = {"workers": workers, "gpus": gpus, "minutes": minutes}

    def row_index(self, job: Job) -> RowIndex:
        """Return an index of the job's cached rows."""
        return job.cached_rows(self.store).build_index()

    def __call__(self, jobs: list[Job]) -> None:
        """Make the missing rows of the jobs. Raises WantedRowsMade if they need other rows too."""
        for job in [job for job in jobs if self.only in ("", job.what)]:
            made = {"what": job.what} | job.identity | self._run_job(job)
            if job.what == "samples":
                made |= sampling_totals(job.cached_rows(self.store).block_facts())
            if job.what == "vectors":
                made["cut"] = sum(block.get("cut", 0) for block in job.cached_rows(self.store).block_facts())
            self.told.append(made)
            stderr.print(made_summary(made))
        if self.only and any(job.what != self.only for job in jobs):
            raise WantedRowsMade

    def _run_job(self, job: Job) -> dict:
        from harness.api.running import make_rows

        def on_start(count: int) -> None:
            stderr.print(f"{count} {job.what} to make by {job.identity.get('model', job.identity['engine'])}")

        options = {} if self.local else self.options
        return make_rows(job, self.store, on_ray=not self.local, progress=progress_bar, on_start=on_start, **options)

    def print_made(self, as_json: bool) -> None:
        """Print how many rows were made, or as JSON the counts and speed of every job."""
        if as_json:
            print_json(self.told)
        else:
            count = sum(made["rows"] for made in self.told)
            what = f"{count} rows made in {self.store.root}; the rest was there already"
            print(what if count else f"nothing to make: all rows are in {self.store.root} already")


def sampling_totals(blocks: list[dict]) -> dict:
    """Return totals over all blocks of a generator, including those of earlier runs."""
    return {
        name: sum(block.get(name, 0) for block in blocks) for name in ("samples", "stopped", "tokens", "again", "same")
    }


def made_summary(made: dict) -> str:
    """Return a line that says how many rows were made, and how fast."""
    if not made["rows"]:
        return f"all {made['what']} were there already"
    parts = [f"{made['rows']} {made['what']} made, {made['errors']} of them errors"]
    parts.append(f"{made['rows'] / made['seconds']:.1f} per second, after {made['start_seconds']:.0f} s for starting")
    if made.get("samples"):
        parts.append(f"{made['stopped'] / made['samples']:.1%} of texts ended by themselves")
        parts.append(f"{made['same']} of {made['again']} prompts that were sampled again gave the same texts")
    if made.get("cut"):
        parts.append(f"{made['cut']} texts of this encoder fill its max_length: what they have beyond was not read")
    return "; ".join(parts)
