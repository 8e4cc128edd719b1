"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness import registry

QUICK_SUITE = registry.PROJECT_ROOT / "jobs" / "suites" / "quick.toml"

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
JsonOutput = Annotated[bool, typer.Option("--json", help="For a program to read.")]
LocalOnly = Annotated[bool, typer.Option("--local", help="In this process, without Ray: for debugging.")]
EngineCount = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Models held at once. [default: as many as there are GPUs for]", show_default=False
    ),
]
GpusPerEngine = Annotated[int, typer.Option(min=1, help="GPUs that one model is spread over, where there are any.")]
BlockMinutes = Annotated[
    float, typer.Option(min=0.1, help="Restart a worker that has not ended a block after so many minutes.")
]
SuiteOrTexts = Annotated[
    Path, typer.Argument(help="A suite (.toml), or texts: a .parquet, .jsonl or .csv file.", show_default=False)
]
OutputFile = Annotated[Path | None, typer.Option(help="Of a file: where to write what was made.", show_default=False)]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow tracking URI. [default: SQLite in the store]",
        show_default=False,
    ),
]
AxisNamer = Annotated[
    str | None,
    typer.Option(
        envvar=["MANYMINDS_AXIS_NAMER", "MANYMINDS_READER"],  # the second is its former name
        help="A language model, ENGINE:MODEL, that names what methods learned of texts, on the HTML page.",
        show_default=False,
    ),
]
