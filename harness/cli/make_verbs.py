"""The commands that make the inputs of trials: prepare, generate, encode."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.app import plan_with_progress
from harness.cli.inference_jobs import DEFAULT_BLOCK_MINUTES, JobRunner, WantedRowsMade
from harness.cli.options import (
    BlockMinutes,
    DataDir,
    EngineCount,
    GpusPerEngine,
    JsonOutput,
    LocalOnly,
    OutputFile,
    Plugins,
    StoreDir,
    SuiteArgument,
    SuiteOrTexts,
)
from harness.cli.terminal import stderr
from harness.errors import UserError
from harness.store.store import Store


def prepare(
    suite: SuiteArgument, store: StoreDir = Path("store"), data: DataDir = None, plugin: Plugins = None
) -> None:
    """Build a suite's tasks, split them, check them for leaks, and save them in the store."""
    plan, opened = plan_with_progress(suite, store, data, plugin)
    print(f"{len(plan.suite.tasks) * len(plan.suite.seeds)} prepared tasks in {opened.root}")


def generate(
    what: SuiteOrTexts,
    generator: Annotated[
        str, typer.Option(help="For a file: the language model, ENGINE:MODEL?option=value.", show_default=False)
    ] = "",
    n: Annotated[int, typer.Option("-n", min=1, help="For a file: candidates per prompt.")] = 16,
    out: OutputFile = None,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: LocalOnly = False,
    workers: EngineCount = None,
    gpus: GpusPerEngine = 1,
    minutes_per_block: BlockMinutes = DEFAULT_BLOCK_MINUTES,
    as_json: JsonOutput = False,
) -> None:
    """Sample candidate responses to the prompts of a suite, or of a file's column `prompt` (and `system`)."""
    runner = JobRunner(Store(store).open(), local, workers, gpus, minutes_per_block, only="samples")
    if what.suffix.lower() == ".toml":
        _make_for_suite(what, runner, store, data, plugin, {"--generator": generator, "--out": out})
    else:
        from harness.inference import files
        from harness.inference.generate import generate_job, generator_inputs

        files.check_output_path(out, ".parquet")
        if not generator:
            raise UserError("--generator is missing", "--generator transformers:small, or vllm:org/name@REVISION")
        sampling = generate_job(
            generator,
            n,
            lambda: map(generator_inputs, files.read_text_columns(what, "prompt", "system?")),
            runner.store,
        )
        runner([sampling])
        if out:
            stderr.print(f"{files.write_candidates(out, runner.row_index(sampling), sampling.batches)} rows in {out}")
        _print_warning(files.describe_errors(runner.row_index(sampling), sampling.batches(), "prompts"))
    runner.print_made(as_json)


def encode(
    what: SuiteOrTexts,
    encoder: Annotated[
        str, typer.Option(help="For a file: the encoder, hashing-DIM or ENGINE:MODEL?option=value.", show_default=False)
    ] = "",
    out: OutputFile = None,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: LocalOnly = False,
    workers: EngineCount = None,
    gpus: GpusPerEngine = 1,
    minutes_per_block: BlockMinutes = DEFAULT_BLOCK_MINUTES,
    as_json: JsonOutput = False,
) -> None:
    """Encode the texts of a suite, or of a file's column `response` (and `prompt`); equal texts are encoded once."""
    runner = JobRunner(Store(store).open(), local, workers, gpus, minutes_per_block)
    if what.suffix.lower() == ".toml":
        _make_for_suite(what, runner, store, data, plugin, {"--encoder": encoder, "--out": out})
    else:
        from harness.inference import files
        from harness.inference.encode import encode_job, reads_prompt

        files.check_output_path(out, ".npy")
        if not encoder:
            raise UserError("--encoder is missing", "--encoder hashing-1024, or transformers:org/name@REVISION")
        columns = ("response", "prompt") if reads_prompt(encoder) else ("response",)
        encoding = encode_job(encoder, lambda: files.read_text_columns(what, *columns), runner.store)
        runner([encoding])
        if out:
            rows, dim = files.write_vectors(out, runner.row_index(encoding), encoding.batches)
            stderr.print(f"{rows} vectors of {dim} numbers in {out}")
        _print_warning(files.describe_errors(runner.row_index(encoding), encoding.batches(), "texts"))
    runner.print_made(as_json)


def score(
    what: SuiteOrTexts,
    by: Annotated[
        list[str],
        typer.Option(
            help="A text scorer, a reward model ENGINE:MODEL, or likelihood:ENGINE:MODEL for personas; repeatable. "
            "Default: all text scorers that are installed."
        ),
    ] = [],  # noqa: B006  # typer copies it
    personas: Annotated[
        Path | None,
        typer.Option(help="A table of personas for likelihood: columns name and description.", show_default=False),
    ] = None,
    out: OutputFile = None,
    store: StoreDir = Path("store"),
    local: LocalOnly = False,
    workers: EngineCount = None,
    gpus: GpusPerEngine = 1,
    minutes_per_block: BlockMinutes = DEFAULT_BLOCK_MINUTES,
) -> None:
    """Score a file's responses (columns prompt and response) by raters that are no people, for `model_raters`."""
    import numpy as np
    import polars as pl

    from harness.inference import files, raters
    from harness.inference.jobs import NotCachedError
    from harness.inference.scorers import INSTALL_SCORERS, TEXT_SCORERS, disagreements, has_package

    files.check_output_path(out, ".parquet")
    names = list(dict.fromkeys(by)) or [name for name in TEXT_SCORERS if has_package(name)]
    if left_out := [] if by else [name for name in TEXT_SCORERS if name not in names]:
        stderr.print(f"left out: {', '.join(left_out)}; {INSTALL_SCORERS} brings them", markup=False)
    raters.canonical_rater_names(names)
    if personas and not any(name.startswith(raters.BY_LIKELIHOOD) for name in names):
        raise UserError(
            "--personas needs a language model that rates as they would", "--by likelihood:transformers:smollm"
        )
    described = raters.read_personas(str(personas or ""))
    runner = JobRunner(Store(store).open(), local, workers, gpus, minutes_per_block)
    table = pl.concat([pl.DataFrame(part) for part in files.read_text_columns(what, "prompt?", "response")])
    table = table.with_columns(pl.col("prompt").fill_null(""))
    prompts, responses = table["prompt"].to_list(), table["response"].to_list()
    found: dict[str, np.ndarray] = {}
    for name in names:
        try:
            scores = raters.rater_scores(name, prompts, responses, runner.store, described)
        except NotCachedError as missing:
            runner([missing.job])
            scores = raters.rater_scores(name, prompts, responses, runner.store, described)
        raters.add_scores(found, scores)
    scored = table.with_columns(pl.Series(name, values, dtype=pl.Float64) for name, values in found.items())
    apart, ties = disagreements(scored.select(list(found)).to_numpy(), table["prompt"].rank("dense").to_numpy())
    for name, share in zip(found, ties, strict=True):
        kind = TEXT_SCORERS[name][0] if name in names and name in TEXT_SCORERS else "reward model"
        print(f"{name:16} {kind if name in names else described[name]}; ties {share:.0%}")
    if not np.isnan(apart):
        print(f"two raters order two responses to a prompt differently in {apart:.0%}")
    if out:
        scored.write_parquet(out)
        stderr.print(f'{len(scored)} rows in {out}; a suite\'s task: name = "model_raters", file = "{out}"')


def _make_for_suite(
    suite: Path, runner: JobRunner, store: Path, data: Path | None, plugin, file_options: dict[str, object]
) -> None:
    """Make the rows that a suite's tasks need and the store lacks; a runner with `only` makes one kind of rows.

    file_options: values of the options that are only for files. Raises UserError where one is given.
    """
    if given := [option for option, value in file_options.items() if value]:
        where = (
            "results for a suite stay in the store" if given[0] == "--out" else "the tasks of a suite name their own"
        )
        raise UserError(f"{given[0]} is only for files: {where}", f"leave {given[0]} out")
    with contextlib.suppress(WantedRowsMade):
        plan_with_progress(suite, store, data, plugin, runner)


def _print_warning(warning: str) -> None:
    if warning:
        stderr.print(warning, style="yellow")
