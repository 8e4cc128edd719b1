"""Public data files: found in a folder or fetched from their origin, and believed only by their checksum."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import polars as pl

from harness.atomic import write_atomically
from harness.errors import UnavailableError, UserError

DATA_FOLDER_VARIABLE = "MANYMINDS_DATA"  # the environment variable that `--data` sets


@dataclass(frozen=True)
class PublicFile:
    """One file as its public origin serves it. `url` names a fixed revision; `sha256` is of the bytes."""

    file: str
    url: str
    sha256: str

    def local_path(self) -> Path:
        """The file under the data folder (at any depth), or fetched once into the cache where no folder is named."""
        if folder := os.environ.get(DATA_FOLDER_VARIABLE):
            return self._checked(self._find_under(Path(folder)))
        cached = Path.home() / ".cache" / "manyminds" / self.sha256[:16] / self.file
        if not cached.exists():
            self._download(cached)
        return self._checked(cached)

    def _find_under(self, folder: Path) -> Path:
        if not folder.is_dir():
            raise UnavailableError(
                f"the data folder {folder} does not exist", f"name a folder that holds {self.file}: --data DIR"
            )
        found = sorted(folder.rglob(self.file))
        if not found:
            raise UnavailableError(f"no {self.file} under {folder}", f"download it from {self.url} into that folder")
        return found[0]

    def _download(self, to: Path) -> None:
        try:
            with urllib.request.urlopen(self.url, timeout=60) as answer:
                write_atomically(to, answer.read())
        except (OSError, HTTPException) as error:  # HTTPException: cut off on the way
            raise UnavailableError(
                f"{self.file} is in no data folder and could not be fetched from {self.url} ({error})",
                f"bring the file and name its folder: --data DIR, or set {DATA_FOLDER_VARIABLE}=DIR",
            ) from error

    def _checked(self, path: Path) -> Path:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise UserError(
                f"{path} is not the file its source serves: sha256 {found[:16]}..., expected {self.sha256[:16]}...",
                f"remove it and download {self.url}",
            )
        return path


def read_csv_columns(path: Path, columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """The named columns of a csv file with their types. Raises UserError for a missing column or a wrong value."""
    frame = pl.read_csv(path, infer_schema=False)
    if missing := [name for name in columns if name not in frame.columns]:
        raise UserError(
            f"{path.name} has no column {', '.join(missing)}; it has {', '.join(c or '(unnamed)' for c in frame.columns)}",
            "compare its first line with the file's public origin",
        )
    typed = frame.select(pl.col(name).cast(kind, strict=False) for name, kind in columns.items())
    for name in columns:
        wrong = frame[name].is_not_null() & typed[name].is_null()
        if wrong.any():
            row = int(wrong.arg_true()[0])
            raise UserError(
                f"{path.name}, line {row + 2}, column {name}: {frame[name][row]!r} is not a number",
                "mend or drop that line",
            )
    return typed


def files_content_digest(*paths: str | Path) -> str:
    """sha256 over files of one's own, for a task's `files_digest`. Raises UserError where one is missing."""
    total = hashlib.sha256()
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(
                f"the file {path} does not exist", "run from the folder that holds it, or write its whole path"
            )
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@dataclass(frozen=True)
class PublicTable(PublicFile):
    """A parquet table made from the files at `url`, which are larger or many; the table itself is not served there."""

    def read_columns(self, *columns: str) -> pl.DataFrame:
        """The named columns, categories as text. Raises UserError for a missing or changed file, or a missing column."""
        frame = pl.read_parquet(self.local_path())
        if missing := [name for name in columns if name not in frame.columns]:
            raise UserError(
                f"{self.file} has no column {', '.join(missing)}; it has {', '.join(frame.columns)}",
                "name one of those it has",
            )
        return frame.select(columns).with_columns(pl.col(pl.Categorical).cast(pl.String))

    def _find_under(self, folder: Path) -> Path:
        if folder.is_dir() and not any(folder.rglob(self.file)):
            raise self._unavailable(f"no {self.file} under {folder}")
        return super()._find_under(folder)

    def _download(self, to: Path) -> None:
        raise self._unavailable(f"{self.file} is in no data folder, and its origin serves other files")

    def _unavailable(self, message: str) -> UnavailableError:
        return UnavailableError(
            f"{message}: it is a table made from {self.url}",
            f"name a folder that holds it: --data DIR, or set {DATA_FOLDER_VARIABLE}=DIR",
        )
