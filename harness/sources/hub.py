"""Data sets of the Hugging Face hub: files at a pinned commit, kept in huggingface_hub's cache, and their rows."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from harness.errors import UnavailableError, UserError
from harness.table_files import replace_half_characters

HUB_TIMEOUT_SECONDS = 10.0  # the hub is unreachable if there is no answer by then; huggingface_hub's default
COLUMN_TYPES = {str: pl.String, int: pl.Int64, bool: pl.Boolean}


def check_revision(repo: str, revision: str) -> None:
    """Raise UserError where the revision is not a full commit hash: branches and tags can move."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(
            f"revision = {revision!r} of the data set {repo} is not the 40 hex digits of a commit",
            f"run `git ls-remote https://huggingface.co/datasets/{repo}` to list commits",
        )


def hub_files(repo: str, revision: str, files: Sequence[str]) -> list[Path]:
    """Return the paths of the named files of a data set at that commit; files missing from the cache are downloaded.

    Files are read directly, not by `datasets.load_dataset`: their content does not depend on a library's version, and
    no code of the repository runs. Raises UnavailableError where a file is not cached and cannot be fetched, and
    UserError where the hub has no such file.
    """
    check_revision(repo, revision)
    return [Path(_hub_file(repo, revision, file, files)) for file in files]


def _hub_file(repo: str, revision: str, file: str, files: Sequence[str]) -> str:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url  # imported here: takes half a second
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
        # Check once whether the hub answers: a download would retry for up to six minutes.
        get_hf_file_metadata(address, timeout=HUB_TIMEOUT_SECONDS)
        return download()
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"the hub has no {file} in the data set {repo} at {revision}, or you have no access to it",
            f"check https://huggingface.co/datasets/{repo}/tree/{revision}; run `hf auth login` where it is not public",
        ) from error
    except Exception as error:  # any error of the HTTP and file libraries that huggingface_hub uses
        command = f"hf download {repo} {' '.join(files)} --repo-type dataset --revision {revision}"
        raise UnavailableError(
            f"{file} of the data set {repo} is not in the hub's cache and could not be fetched "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})",
            f'on a machine with a network, run {command} --local-dir DIR and set file = "DIR" in the task; or omit '
            "--local-dir, which fills the cache (the folder that HF_HOME names)",
        ) from error


def parse_hub_name(name: str) -> tuple[str, str]:
    """Return repository and revision of a data set named org/name@REVISION. Raises UserError for another name."""
    repo, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"hub = {name!r} is not the name of a data set", 'write hub = "org/name@REVISION"')
    check_revision(repo, revision)
    return repo, revision


def load_hub_table(name: str, config: str = "", split: str = "train", first_rows: int = 0) -> pl.DataFrame:
    """Return a data set of the hub, read with the library `datasets`, which runs no code of the repository.

    name: org/name@REVISION.  config: of a data set with several.  first_rows: stream only so many rows; 0 for all.
    Raises UnavailableError where the hub cannot be reached and the data set is not in its cache, and UserError where the
    hub has no such data set, configuration or split.
    """
    import datasets  # imported here: takes a second
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repo, revision = parse_hub_name(name)
    try:
        with _quiet_datasets(datasets):
            # Ask once whether the hub answers: `datasets` would retry for minutes before it reads its cache.
            offline = not _hub_answers(
                partial(HfApi().dataset_info, repo, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
            )
            only_local = datasets.DownloadConfig(local_files_only=offline)
            options = {"revision": revision, "split": split, "download_config": only_local}
            found = datasets.load_dataset(repo, config or None, streaming=bool(first_rows), **options)
            if first_rows:
                return pl.from_dicts(list(found.take(first_rows)), infer_schema_length=None)
            return found.to_polars()
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        raise UserError(
            f"the hub has no data set {repo} at {revision}, or you have no access to it",
            f"check https://huggingface.co/datasets/{repo}/tree/{revision}; run `hf auth login` where it is not public",
        ) from error
    except ValueError as error:  # no such configuration or split
        raise UserError(
            f"{repo}: {str(error).strip().splitlines()[0]}",
            "set config and hub_split as the data set's page shows them",
        ) from error
    except Exception as error:  # any error of the HTTP and file libraries that `datasets` uses
        command = f"hf download {repo} --repo-type dataset --revision {revision} --local-dir DIR"
        raise UnavailableError(
            f"the data set {repo} could not be read from the hub or its cache "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})",
            f"on a machine with a network, run {command} and set file to the table in DIR",
        ) from error


def _hub_answers(ask: Callable[[], object]) -> bool:
    """Return whether the hub can be reached; its refusals are raised."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        ask()
    except HfHubHTTPError:
        raise
    except Exception:  # any error of the HTTP library: no network, no answer in time
        return False
    return True


@contextlib.contextmanager
def _quiet_datasets(datasets: Any) -> Iterator[None]:
    """Hide the progress bars of `datasets` inside the block."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def numbered_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield each row of a parquet or jsonl file with its number, from 0. Raises UserError where it cannot be read.

    Half a character in a text becomes U+FFFD.
    """
    if not path.is_file():
        raise UserError(
            f"the file {path} does not exist", "run from the folder that contains it, or give its full path"
        )
    if path.suffix.lower() == ".parquet":
        try:
            yield from enumerate(pl.read_parquet(path, glob=False).iter_rows(named=True))
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{path} is not a parquet table: {error}", "write the file again") from error
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                if line.strip():
                    yield number, json.loads(replace_half_characters(line))
            except ValueError as error:  # not JSON, or not UTF-8
                raise UserError(
                    f"{path}, row {number} is not JSON: {error}",
                    "write one object per line; check that the file is complete",
                ) from error


def read_typed_table(path: Path, columns: Mapping[str, type]) -> pl.DataFrame:
    """Return the named columns of a parquet or jsonl file, of the types str, int or bool; a null text becomes "".

    Raises UserError, which names the first row where a column is missing or of another type.
    """
    found = []
    for number, row in numbered_rows(path):
        values = [row.get(name) for name in columns] if isinstance(row, dict) else []
        values = ["" if value is None and name in row else value for name, value in zip(columns, values, strict=False)]
        if [type(value) for value in values] != list(columns.values()):
            told = {name: row[name] for name in columns if name in row} if isinstance(row, dict) else row
            raise UserError(
                f"{path}, row {number}: {str(told)[:200]} has missing columns or wrong types",
                "each row needs " + ", ".join(f"{name} ({kind.__name__})" for name, kind in columns.items()),
            )
        found.append(values)
    return pl.DataFrame(found, schema={name: COLUMN_TYPES[kind] for name, kind in columns.items()}, orient="row")
