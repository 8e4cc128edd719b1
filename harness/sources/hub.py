"""Data sets of the Hugging Face hub: files at a pinned commit, kept in the hub's own cache, and their rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from harness.errors import UnavailableError, UserError

HUB_TIMEOUT_SECONDS = (
    10.0  # seconds until a hub that does not answer counts as out of reach; huggingface_hub's own default
)
COLUMN_TYPES = {str: pl.String, int: pl.Int64, bool: pl.Boolean}


def check_revision(repo: str, revision: str) -> None:
    """Raises UserError where the revision is not a whole commit: branches and tags move."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"revision = {revision!r} of the data set {repo} is not the 40 hex digits of a commit",
            f"git ls-remote https://huggingface.co/datasets/{repo} lists them",
        )


def hub_files(repo: str, revision: str, files: Sequence[str]) -> list[Path]:
    """Where the named files of a data set at that commit lie on disk, each downloaded where the cache lacks it.

    Files, not `datasets.load_dataset`: what a commit's files say does not depend on a library's version, and no code of
    the repository runs. Raises UnavailableError without them and without a network, UserError where the hub knows no such file.
    """
    check_revision(repo, revision)
    return [Path(_hub_file(repo, revision, file, files)) for file in files]


def _hub_file(repo: str, revision: str, file: str, files: Sequence[str]) -> str:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # half a second
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    download = partial(hf_hub_download, repo, file, repo_type="dataset", revision=revision)
    try:
        return download(local_files_only=True)
    except LocalEntryNotFoundError:
        pass
    try:
        address = hf_hub_url(repo, file, repo_type="dataset", revision=revision)
        get_hf_file_metadata(address, timeout=HUB_TIMEOUT_SECONDS)  # asked once; a download asks for up to six minutes
        return download()
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"the hub has no {file} in the data set {repo} at {revision}, or does not show it to you",
            f"look at https://huggingface.co/datasets/{repo}/tree/{revision}; `hf auth login` where it is not public",
        ) from error
    except Exception as error:  # of whichever HTTP and file libraries huggingface_hub is built on
        command = f"hf download {repo} {' '.join(files)} --repo-type dataset --revision {revision}"
        raise UnavailableError(
            f"{file} of the data set {repo} is not in the hub's cache and could not be fetched "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})",
            f'with a network: {command} --local-dir DIR, then file = "DIR" in the task; or without --local-dir, which '
            "fills the cache (HF_HOME names it)",
        ) from error


def numbered_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Each row of a parquet or jsonl file with its number from 0. Raises UserError where it cannot be read."""
    if not path.is_file():
        raise UserError(f"the file {path} does not exist", "run from the folder that holds it, or write its whole path")
    if path.suffix == ".parquet":
        try:
            yield from enumerate(pl.read_parquet(path).iter_rows(named=True))
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{path} is no parquet table: {error}", "write the file anew") from error
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                if line.strip():
                    yield number, json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                raise UserError(
                    f"{path}, row {number}: no JSON ({error})", "one object a line; is it cut off?"
                ) from error


def read_typed_table(path: Path, columns: Mapping[str, type]) -> pl.DataFrame:
    """The named columns of such a file, of the types str, int or bool; a text that is null becomes an empty one.

    Raises UserError naming the first row where a column is missing or of another type.
    """
    found = []
    for number, row in numbered_rows(path):
        values = [row.get(name) for name in columns] if isinstance(row, dict) else []
        values = ["" if value is None and name in row else value for name, value in zip(columns, values, strict=False)]
        if [type(value) for value in values] != list(columns.values()):
            told = {name: row[name] for name in columns if name in row} if isinstance(row, dict) else row
            raise UserError(
                f"{path}, row {number}: {str(told)[:200]}",
                "wanted: " + ", ".join(f"{name} ({kind.__name__})" for name, kind in columns.items()),
            )
        found.append(values)
    return pl.DataFrame(found, schema={name: COLUMN_TYPES[kind] for name, kind in columns.items()}, orient="row")
