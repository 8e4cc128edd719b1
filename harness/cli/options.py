"""Command-line options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import registry

QUICK_SUITE = registry.PROJECT_ROOT / "jobs" / "suites" / "quick.toml"

SuiteArgument = Annotated[
    Path, typer.Argument(help="A suite's TOML file, for example from jobs/suites.", show_default=False)
]
QuickOnly = Annotated[
    bool,
    typer.Option("--quick", help="Use the suite's `quick` settings: fewer seeds, smaller tasks, a smaller budget."),
]
StoreDir = Annotated[
    Path, typer.Option("--store", envvar="MANYMINDS_STORE", help="Folder for prepared tasks and results.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="MANYMINDS_DATA",
        help="Folder of public data files; files that are missing there are downloaded where possible.",
    ),
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A task or method file outside the project; repeatable.")
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LocalOnly = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray, for debugging.")]
EngineCount = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Number of models loaded at the same time. Default: as many as the GPUs allow.",
        show_default=False,
    ),
]
GpusPerEngine = Annotated[int, typer.Option(min=1, help="GPUs for one model, if there are any.")]
BlockMinutes = Annotated[
    float, typer.Option(min=0.1, help="Restart a worker that needs more minutes than this for a block of texts.")
]
TrialMinutes = Annotated[
    float,
    typer.Option(min=0.01, help="End a trial that takes longer, and note it as failed. With --local nothing ends it."),
]
SuiteOrTexts = Annotated[
    Path, typer.Argument(help="A suite (.toml), or texts: a .parquet, .jsonl or .csv file.", show_default=False)
]
OutputFile = Annotated[
    Path | None, typer.Option(help="File to write the results to, if the input is a file of texts.", show_default=False)
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow tracking URI. Default: SQLite in the store.",
        show_default=False,
    ),
]
AxisNamer = Annotated[
    str | None,
    typer.Option(
        envvar=["MANYMINDS_AXIS_NAMER", "MANYMINDS_READER"],  # the second is the former name
        help="A language model, ENGINE:MODEL, that names the axes of preference learned from texts, on the HTML page.",
        show_default=False,
    ),
]
