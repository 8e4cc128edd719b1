"""The verbs of `manyminds`: data to stdout, everything else to stderr, and a hint for every mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from harness import registry
from harness.errors import Mistake
from harness.making import MINUTES, Enough, Maker
from harness.store.store import FOLDER, Store
from harness.terminal import bar, err

app = typer.Typer(
    help="A benchmark harness for personalised reward models: who learns what one person prefers from a few choices?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
QUICK = registry.ROOT / "jobs" / "suites" / "quick.toml"

SuiteFile = Annotated[Path, typer.Argument(help="A TOML file; jobs/suites holds some.", show_default=False)]
StoreDir = Annotated[
    Path, typer.Option("--store", envvar="MANYMINDS_STORE", help="Folder of prepared tasks and results.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data", envvar="MANYMINDS_DATA", help="Folder of public data files; without it those that can be are fetched."
    ),
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A task or method file outside the project; repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="For a program to read.")]
Local = Annotated[bool, typer.Option("--local", help="In this process, without Ray: for debugging.")]
Engines = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Models held at once. [default: as many as there are GPUs for]", show_default=False
    ),
]
Gpus = Annotated[int, typer.Option(min=1, help="GPUs that one model is spread over, where there are any.")]
Minutes = Annotated[float, typer.Option(min=0.1, help="A worker that ends no block for so long is restarted.")]
Texts = Annotated[
    Path, typer.Argument(help="A suite (.toml), or texts: a .parquet, .jsonl or .csv file.", show_default=False)
]
Out = Annotated[Path | None, typer.Option(help="Of a file: where to write what was made.", show_default=False)]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow tracking URI. [default: SQLite in the store]",
        show_default=False,
    ),
]
Reader = Annotated[
    str | None,
    typer.Option(
        envvar="MANYMINDS_READER",
        help="A language model, ENGINE:MODEL, that names what methods learned of texts, on the HTML page.",
        show_default=False,
    ),
]


@app.command("list")
def list_(plugin: Plugins = None, as_json: Json = False) -> None:
    """Tasks and methods, a line each."""
    registry.add_plugins(plugin or [])
    kinds = {"tasks": registry.names("task"), "methods": registry.names("method")}
    if as_json:
        print(json.dumps(kinds, indent=1))
        return
    width = max(len(name) for known in kinds.values() for name in known)
    for kind, known in kinds.items():
        print(f"{kind}:")
        print("\n".join(f"  {name:{width}}  {line}" for name, line in known.items()))


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A task's or method's name, or a file that holds one.")],
    data: DataDir = None,
    as_json: Json = False,
) -> None:
    """Holds a task or method against the contract that all of them keep."""
    _use_data(data)
    if name.endswith(".py") or "/" in name:
        registry.add_plugins([name])
        name = Path(name).stem
    from harness.check.contract import check_name

    failed, findings = 0, []
    for found in check_name(name):
        failed += found.problem is not None
        findings.append(dataclasses.asdict(found))
        if not as_json:
            print(
                f"{'ok  ' if found.problem is None else 'FAIL'} {found.what}{f': {found.problem}' if found.problem else ''}"
            )
    if as_json:
        print(json.dumps(findings, indent=1))
    err.print(f"{name}: {len(findings)} checks ran, {failed} failed")
    raise typer.Exit(1 if failed else 0)


@app.command()
def prepare(suite: SuiteFile, store: StoreDir = Path("store"), data: DataDir = None, plugin: Plugins = None) -> None:
    """Builds, splits and leak-checks a suite's tasks into the store, from where workers read them."""
    plan, opened = _plan(suite, store, data, plugin)
    print(f"{len(plan.suite.tasks) * len(plan.suite.seeds)} prepared tasks in {opened.root}")


@app.command()
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
    made = Maker(_use_store(store).open(), local, workers, gpus, minutes, only="samples")
    if what.suffix == ".toml":
        _for_suite(what, made, store, data, plugin, {"--generator": generator, "--out": out})
    else:
        from harness.inference import files
        from harness.inference.generate import inputs, job

        files.check_out(out, ".parquet")
        if not generator:
            raise Mistake("who should write?", "--generator transformers:small, or vllm:org/name@REVISION")
        sampling = job(generator, n, lambda: map(inputs, files.read_texts(what, "prompt", "system?")))
        made([sampling])
        if out:
            err.print(f"{files.write_candidates(out, made.index(sampling), sampling.batches)} rows in {out}")
        _remark(files.remark_errors(made.index(sampling), sampling.batches(), "prompts"))
    made.tell(as_json)


@app.command()
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
    made = Maker(_use_store(store).open(), local, workers, gpus, minutes)
    if what.suffix == ".toml":
        _for_suite(what, made, store, data, plugin, {"--encoder": encoder, "--out": out})
    else:
        from harness.inference import files
        from harness.inference.encode import job, reads_prompt

        files.check_out(out, ".npy")
        if not encoder:
            raise Mistake("encoded by what?", "--encoder hashing-1024, or transformers:org/name@REVISION")
        columns = ("response", "prompt") if reads_prompt(encoder) else ("response",)
        encoding = job(encoder, lambda: files.read_texts(what, *columns))
        made([encoding])
        if out:
            err.print(f"{files.write_vectors(out, made.index(encoding), encoding.batches)} in {out}")
        _remark(files.remark_errors(made.index(encoding), encoding.batches(), "texts"))
    made.tell(as_json)


@app.command()
def plan(
    suite: SuiteFile,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """What a run would do: trials, what it could detect, and how long it would take."""
    planned, opened = _plan(suite, store, data, plugin)
    from harness.trials.plan import forecast

    told = forecast(planned, opened)
    if as_json:
        print(json.dumps(told, indent=1))
        return
    print(f"{planned.suite.title}  [{planned.suite.name} {planned.suite.digest}]")
    print(
        f"trials: {told['trials']}, of which {told['finished']} are finished; about {told['seconds_left']:.0f} s of work left"
    )
    for task in told["tasks"]:
        print(
            f"  {task['task']}: {task['people']} test people, {task['queries']} queries each, {task['seeds']} seeds; "
            f"detects a gain of {task['detectable']:.3f} (margin {planned.suite.margin:g})"
        )
    print(
        "detects: with 80 % power at 5 %, if two methods differ on a fifth of the queries (intra-person correlation .05)"
    )
    for refusal in told["refusals"]:
        print(f"  {refusal['method']} sits out {refusal['task']}: {refusal['reason']}")


@app.command()
def run(
    suite: SuiteFile = QUICK,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: Local = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers. [default: one per core]", show_default=False)
    ] = None,
    together: Annotated[
        int, typer.Option(min=1, help="Workers that train each language-model policy, a GPU or core each.")
    ] = 1,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="No policies without GPUs, which are used where there are any.")
    ] = False,
    mlflow: Tracking = None,
    reader: Reader = None,
    as_json: Json = False,
) -> None:
    """Runs what is not finished yet, then shows the board. Without a suite: the quick one."""
    began = time.monotonic()
    _check_reader(reader)
    made = Maker(_use_store(store).open(), local)
    if local and together > 1:
        raise Mistake("--local is one process, which trains alone", "leave out --local, or --together")
    if gpu:
        from harness.on_ray.trials import check_gpus

        check_gpus(together, made.store)
    planned, opened = _plan(suite, store, data, plugin, made)
    from harness.trials.plan import unfinished

    todo = unfinished(planned, opened)
    err.print(f"{planned.suite.title}: {len(planned.trials)} trials, {len(planned.trials) - len(todo)} finished before")
    from harness.report.to_mlflow import Publisher

    publisher = Publisher(planned, opened, mlflow)
    if todo:
        _run_trials(todo, opened, plugin, local, workers, made, publisher.trials, together)
    failed = unfinished(planned, opened)
    shown = _show_board(planned, opened, as_json, reader, made)
    with _aside("MLflow"):
        publisher.everything(shown)
    if not as_json:
        err.print(f"MLflow:  {publisher.how_to_open()}")
        err.print(f"done in {time.monotonic() - began:.0f} s")
    _tell_failed(failed, opened)


@app.command()
def board(
    suite: SuiteFile,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    reader: Reader = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """The leaderboard of what is finished: terminal, and a self-contained HTML file."""
    _check_reader(reader)
    planned, opened = _plan(suite, store, data, plugin)
    _show_board(planned, opened, as_json, reader, Maker(_use_store(store).open(), local))


@app.command()
def reproduce(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Papers, claims such as N1, or suite files of your own; without any all are listed."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every claim of every paper.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer seeds and smaller tasks: a first verdict.")] = False,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    local: Local = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray Train workers. [default: one per core]", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Runs what published claims rest on, and says of each whether it holds."""
    from harness.claims import reproduce as claims
    from harness.claims.page import print_verdicts, write_page

    if not what and not every:
        for file, (paper, listed) in claims.catalogue().items():
            print(f"{paper}: {claims.title_of(file)} ({file.stem})")
            print("\n".join(f"  {claim.id:4} {claim.title}" for claim in listed))
        err.print("\nmanyminds reproduce PAPER or ID checks some, manyminds reproduce --all checks every one")
        return
    if what and every:
        raise Mistake("--all is every claim of every paper", f"leave out --all, or {' '.join(what)}")
    if data and not data.is_dir():
        raise Mistake(
            f"the data folder {data} does not exist", "name a folder that holds public data files: --data DIR"
        )
    began = time.monotonic()
    _use_data(data)
    registry.add_plugins(plugin or [])
    names = what or []
    wanted, opened, unwritable, made = claims.chosen(names), _use_store(store), None, None
    try:
        made = Maker(_use_store(store).open(), local)
    except Mistake as mistake:  # what is finished can be read nevertheless
        unwritable = mistake
    for file in wanted:
        if quick and not claims.has_quick(file):
            err.print(f"{file.name} has no quick settings: it runs in full")
    with bar("preparing", claims.n_prepared(wanted, quick)) as step:
        parts = claims.chapters(wanted, opened, quick, lambda: step(1), made)
    trials = claims.trials_of(parts)
    todo = [t for t in trials if opened.read("trials", t.key) is None]
    counted = [f"{n} {what}{'s' if n != 1 else ''}" for n, what in ((len(parts), "suite"), (len(trials), "trial"))]
    err.print(f"{': '.join(counted)}, {len(trials) - len(todo)} finished before")
    if todo and unwritable:
        raise unwritable
    if todo:
        _run_trials(todo, opened, plugin, local, workers, made)
    found = claims.verdicts(parts)
    if as_json:
        print(json.dumps([judged.as_dict() for judged in found], indent=1, allow_nan=False))
    else:
        print_verdicts(found)
        page = (
            write_page(found, parts, opened, names, quick) if not unwritable else f"none: {unwritable.message}"
        )
        err.print(f"\npage:    {page}")
        err.print(f"done in {time.monotonic() - began:.0f} s")
    _tell_failed([t for t in trials if opened.read("trials", t.key) is None], opened)


@app.command()
def publish(
    suite: SuiteFile,
    store: StoreDir = Path("store"),
    data: DataDir = None,
    plugin: Plugins = None,
    mlflow: Tracking = None,
) -> None:
    """Writes the suite's results to MLflow; again and again without duplicates."""
    planned, opened = _plan(suite, store, data, plugin)
    from harness.report.to_mlflow import Publisher

    publisher = Publisher(planned, opened, mlflow)
    publisher.everything()
    print(publisher.how_to_open())


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="A trial's key.")],
    store: StoreDir = Path("store"),
    save: Annotated[
        Path | None,
        typer.Option(help="Where to write the language model it trained, ready to load.", show_default=False),
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """One trial: what it was, how it ran, and why it failed if it did; or the language model that it trained."""
    opened = _use_store(store)
    matching = sorted(k for k in opened.keys("trials") | opened.keys("failures") if k.startswith(key))
    if len(matching) != 1:
        keys = f"{len(matching)} keys begin with {key}" if matching else f"no trial {key} in {opened.root}"
        raise Mistake(keys, "manyminds board SUITE --json lists keys; --store DIR names another store")
    found = opened.read("trials", matching[0]) or opened.failure(matching[0])
    registry.add_plugins(plugin or [])
    if save:
        if as_json:
            raise Mistake("--save tells how to load what it writes, which is no JSON", "leave out one of the two")
        from harness.trials.export import save_trained

        print(save_trained(opened, found, save))
        return
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for part in ("identity", "facts"):
        for name, value in found.get(part, {}).items():
            if name == "curves":
                value = {curve: f"{len(points)} points, last {points[-1]:.4g}" for curve, points in value.items()}
            print(f"{name:24} {json.dumps(value)}")
    print(
        found["trace"] if "trace" in found else "".join(f"{n:24} {opened.file(found, n)}\n" for n in found["files"]),
        end="",
    )
    if "written.arrow" in found.get("files", {}):
        from harness.board.text_worth import samples

        for whose, text in samples(opened, found):
            print(f"{whose:24} {json.dumps(text, ensure_ascii=False)}")
    if "learned.safetensors" in found.get("files", {}):
        from harness.trials.export import exports

        if exports(found):
            print(f"{'its language model':24} manyminds show {found['key']} --save DIR, for transformers and vLLM")


@app.command()
def doctor(store: StoreDir = Path("store"), data: DataDir = None, as_json: Json = False) -> None:
    """Checks this machine, the store and the security defaults, a line each."""
    _use_data(data)
    from harness.doctor import examine

    findings = list(examine(Store(store)))
    if as_json:
        print(json.dumps([dataclasses.asdict(f) for f in findings], indent=1))
    else:
        for f in findings:
            print(f"{f.state:4} {f.what}: {f.detail}{f'  hint: {f.hint}' if f.hint else ''}")
    raise typer.Exit(1 if any(f.state == "BAD" for f in findings) else 0)


def _use_data(data: Path | None) -> None:
    if data is not None:
        os.environ["MANYMINDS_DATA"] = str(data.absolute())


def _use_store(store: Path) -> Store:
    """The store, known from here on to whatever reads rows from it."""
    os.environ[FOLDER] = str(store.absolute())
    return Store.current()


def _plan(suite: Path, store: Path, data: Path | None, plugin: list[Path] | None, make=None):
    """The plan, and the store, opened. make: makes what tasks lack of samples and vectors; without it that is a Mistake."""
    _use_data(data)
    registry.add_plugins(plugin or [])
    from harness.trials.plan import make_plan
    from harness.trials.suite import read_suite

    read = read_suite(suite)
    opened = _use_store(store).open()
    with bar("preparing", len(read.tasks) * len(read.seeds)) as step:
        return make_plan(read, opened, lambda: step(1), make), opened


def _for_suite(suite: Path, made, store: Path, data: Path | None, plugin, of_files: dict[str, object]) -> None:
    """Makes what a suite's tasks lack, as far as `made` goes."""
    if given := [option for option, value in of_files.items() if value]:
        raise Mistake(f"{given[0]} is for files; a suite's tasks say it themselves", f"leave {given[0]} out")
    with contextlib.suppress(Enough):
        _plan(suite, store, data, plugin, made)


def _run_trials(
    todo, opened: Store, plugin, local: bool, workers, made: Maker, on_group=lambda trials: None, together: int = 1
) -> None:
    """Where methods ask a language model, one engine answers what all of their trials will ask beforehand."""
    for method in {trial.method for trial in todo}:
        method.ready()
    if asking := [trial for trial in todo if type(trial.method).asks]:
        from harness.trials.questions import questions

        while jobs := questions(asking, opened):
            made(jobs)
    with bar("running", len(todo)) as step:
        if local:
            from harness.trials.finish import finish_all

            for _ in finish_all(todo, opened):
                step(1)
        else:
            err.print("starting Ray, which takes some 15 s")
            from harness.on_ray.trials import run_on_ray

            run_on_ray(
                todo,
                opened,
                plugins=plugin or [],
                workers=workers,
                on_progress=step,
                on_group=on_group,
                together=together,
            )


def _tell_failed(failed, opened: Store) -> None:
    for trial in failed:
        reason = (opened.failure(trial.key) or {"reason": "did not run"})["reason"]
        err.print("failed", style="red", end=" ")
        err.print(f"{trial.key} {trial.method.name} on {trial.task.name}, seed {trial.seed}: {reason}")
    if failed:
        err.print(
            f"\nhint: manyminds show {failed[0].key} --store {opened.root} prints the traceback; the same command runs them again"
        )
        raise typer.Exit(1)


def _remark(told: str) -> None:
    if told:
        err.print(told, style="yellow")


def _check_reader(reader: str | None) -> None:
    """Raises Mistake where nobody is named, before anything runs."""
    if reader:
        from harness.inference.generate import make_generator

        make_generator(reader).check()


def _show_board(planned, opened: Store, as_json: bool, reader: str | None, make: Maker):
    from harness.board.make import make_board

    made = make_board(planned, opened)
    if as_json:
        print(json.dumps(made.as_dict(), indent=1))
    else:
        from harness.inference.jobs import Lacking
        from harness.report.html import write_html
        from harness.report.terminal import print_board

        print_board(made)
        try:
            page = write_html(made, opened, reader)
        except Lacking as lacking:  # the reader has not named these axes yet
            make([lacking.job])
            page = write_html(made, opened, reader)
        err.print(f"\nboard:   {page}")
    return made


@contextlib.contextmanager
def _aside(what: str) -> Iterator[None]:
    """For what may go wrong without costing a result."""
    try:
        yield
    except Mistake as mistake:
        err.print(f"{what}:", style="yellow", end=" ")
        err.print(f"{mistake.message}\n\nhint: {mistake.hint}; results are safe, `manyminds publish SUITE` tries again")


def main() -> None:
    """The `manyminds` command: 0 done, 1 something failed, 2 a mistake, 130 interrupted."""
    try:
        app()
    except KeyboardInterrupt:
        err.print("interrupted: what is finished is kept, and the same command goes on from there")
        sys.exit(130)
    except Mistake as mistake:
        err.print("error:", style="red", end=" ")
        err.print(f"{mistake.message}\n\nhint: {mistake.hint}")
        sys.exit(2)


if __name__ == "__main__":
    main()
