"""Verbs that make what trials need: prepare, generate, encode."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import plan_suite
from harness.cli.inference_jobs import MINUTES, Enough, Maker
from harness.cli.options import DataDir, Engines, Gpus, Json, Local, Minutes, Out, Plugins, StoreDir, SuiteFile, Texts
from harness.cli.terminal import err
from harness.errors import Mistake
from harness.store.store import Store


def prepare(suite: SuiteFile, store: StoreDir = Path("store"), data: DataDir = None, plugin: Plugins = None) -> None:
    """Builds, splits and leak-checks a suite's tasks into the store, from where workers read them."""
    plan, opened = plan_suite(suite, store, data, plugin)
    print(f"{len(plan.suite.tasks) * len(plan.suite.seeds)} prepared tasks in {opened.root}")


def generate(
    what: Texts,
    generator: Annotated[str, typer.Option(help="Of a file: ENGINE:MODEL?option=value.", show_default=False)] = "",
    n: Annotated[int, typer.Option("-n", min=1, help="Of a file: candidates of each prompt.")] = 16,
    out: Out = None,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: Local = False,
    workers: Engines = None,
    gpus: Gpus = 1,
    minutes: Minutes = MINUTES,
    as_json: Json = False,
) -> None:
    """Samples candidate responses to the prompts of a suite, or of a file's column `prompt` (and `system`)."""
    made = Maker(Store(store).open(), local, workers, gpus, minutes, only="samples")
    if what.suffix == ".toml":
        _for_suite(what, made, store, data, plugin, {"--generator": generator, "--out": out})
    else:
        from harness.inference import files
        from harness.inference.generate import inputs, job

        files.check_out(out, ".parquet")
        if not generator:
            raise Mistake("who should write?", "--generator transformers:small, or vllm:org/name@REVISION")
        sampling = job(generator, n, lambda: map(inputs, files.read_texts(what, "prompt", "system?")), made.store)
        made([sampling])
        if out:
            err.print(f"{files.write_candidates(out, made.index(sampling), sampling.batches)} rows in {out}")
        _remark(files.remark_errors(made.index(sampling), sampling.batches(), "prompts"))
    made.tell(as_json)


def encode(
    what: Texts,
    encoder: Annotated[
        str, typer.Option(help="Of a file: hashing-DIM, or ENGINE:MODEL?option=value.", show_default=False)
    ] = "",
    out: Out = None,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: Local = False,
    workers: Engines = None,
    gpus: Gpus = 1,
    minutes: Minutes = MINUTES,
    as_json: Json = False,
) -> None:
    """Encodes the texts of a suite, or of a file's column `response` (and `prompt`), each distinct one once."""
    made = Maker(Store(store).open(), local, workers, gpus, minutes)
    if what.suffix == ".toml":
        _for_suite(what, made, store, data, plugin, {"--encoder": encoder, "--out": out})
    else:
        from harness.inference import files
        from harness.inference.encode import job, reads_prompt

        files.check_out(out, ".npy")
        if not encoder:
            raise Mistake("encoded by what?", "--encoder hashing-1024, or transformers:org/name@REVISION")
        columns = ("response", "prompt") if reads_prompt(encoder) else ("response",)
        encoding = job(encoder, lambda: files.read_texts(what, *columns), made.store)
        made([encoding])
        if out:
            err.print(f"{files.write_vectors(out, made.index(encoding), encoding.batches)} in {out}")
        _remark(files.remark_errors(made.index(encoding), encoding.batches(), "texts"))
    made.tell(as_json)


def _for_suite(suite: Path, made, store: Path, data: Path | None, plugin, of_files: dict[str, object]) -> None:
    """Makes what a suite's tasks lack, as far as `made` goes."""
    if given := [option for option, value in of_files.items() if value]:
        raise Mistake(f"{given[0]} is for files; a suite's tasks say it themselves", f"leave {given[0]} out")
    with contextlib.suppress(Enough):
        plan_suite(suite, store, data, plugin, made)


def _remark(told: str) -> None:
    if told:
        err.print(told, style="yellow")
