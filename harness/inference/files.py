"""Input and output files of any length: texts from parquet, jsonl or csv in batches; results to npy or parquet."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json
import pyarrow.parquet

from harness.atomic import open_for_replacement
from harness.errors import UserError, error_prefix
from harness.inference.cache import RowIndex, id_array
from harness.inference.generate import MAX_PROMPT_ERROR_RATE, SAMPLE_SCHEMA
from harness.table_files import check_csv, replace_half_characters

ROWS_PER_BATCH = 16_384  # rows read at a time
BYTES_PER_READ = 1 << 24  # read at a time from jsonl and csv; a row must fit
MAX_TEXT_BYTES = 1 << 24  # of a text in parquet; longer ones are damaged files, and take memory many times over
MAX_GROUP_BYTES = 1 << 28  # of a column of a row group that is read although a text in it must be too long
TEXT_TYPE = pa.large_string()
FILE_SUFFIXES = (".parquet", ".jsonl", ".csv")


def read_text_columns(path: Path, *columns: str) -> Iterator[pa.Table]:
    """Yield the named text columns as large_string, at most ROWS_PER_BATCH rows at a time.

    A column named with a question mark, such as "system?", is optional: where the file lacks it, its values are null.
    A null in a required column becomes the empty text, which is an error of that row alone. Bytes and escapes that are
    not Unicode become U+FFFD.

    Raises UserError for a missing or broken file, for a required column that is missing or not text, and for a text of
    more than MAX_TEXT_BYTES; rows are counted from 0.
    """
    if not path.is_file():
        raise UserError(f"the file {path} does not exist", "give a suite (.toml), or a .parquet, .jsonl or .csv file")
    suffix = path.suffix.lower()
    if suffix not in FILE_SUFFIXES:
        raise UserError(
            f"{path} has an unknown file type", f"give a suite (.toml), or a file of type {', '.join(FILE_SUFFIXES)}"
        )
    if suffix == ".csv":
        with error_prefix(str(path)):
            check_csv(path)
    names = [name.rstrip("?") for name in columns]
    needed = [name for name in columns if not name.endswith("?")]
    with _arrow_errors_as_user_errors(path):
        there = _open_table(path, suffix, [])[0]
        if missing := [name for name in needed if name not in there.names]:
            raise UserError(
                f"{path} has no column {', '.join(missing)}; its columns are {', '.join(there.names)}",
                f"rename one of them to {missing[0]}",
            )
        schema, batches = _open_table(path, suffix, names)
        found = [name for name in names if name in schema.names]
        for name in found:
            if not _is_text(kind := schema.field(name).type):
                raise UserError(
                    f"{path}: column {name} holds {kind}, not text", "turn each list of messages into one string"
                )
        start = 0
        for batch in batches:
            table = {name: pa.nulls(len(batch), TEXT_TYPE) for name in names}
            for name in found:
                if (row := _too_long_row(batch[name])) is not None:
                    raise _too_long_error(path, f"row {start + row}", name)
                table[name] = _as_large_string(batch[name])
            start += len(batch)
            yield pa.table(table | {name: table[name].fill_null("") for name in needed})


def _open_table(path: Path, suffix: str, names: list[str]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return a file's schema, and its batches of at most ROWS_PER_BATCH rows with the named columns, where they exist.

    In jsonl and csv, the named columns stay text even if they look like dates or numbers.
    """
    if suffix == ".jsonl":
        text = pa.schema([(name, TEXT_TYPE) for name in names])
        others = "ignore" if names else "infer"
        reader = pa.json.open_json(
            pa.PythonFile(WholeCharacters(path), mode="r"),
            parse_options=pa.json.ParseOptions(explicit_schema=text, unexpected_field_behavior=others),
            read_options=pa.json.ReadOptions(block_size=BYTES_PER_READ),
        )
        return reader.schema, (
            batch.slice(at, ROWS_PER_BATCH) for batch in reader for at in range(0, len(batch), ROWS_PER_BATCH)
        )
    if suffix == ".csv":
        kind = pa.dataset.CsvFileFormat(
            parse_options=pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, TEXT_TYPE)),
            read_options=pa.csv.ReadOptions(block_size=BYTES_PER_READ),
        )
    else:
        kind = pa.dataset.ParquetFileFormat()
        _check_row_groups(path, names)
    data = pa.dataset.dataset(path, format=kind)
    return data.schema, data.to_batches(
        columns=[name for name in names if name in data.schema.names],
        batch_size=ROWS_PER_BATCH,
        batch_readahead=1,
        use_threads=False,
    )


class WholeCharacters(io.RawIOBase):
    """A jsonl file for reading, with escapes that are half a character (lone surrogates) replaced by U+FFFD.

    Arrow refuses a whole file for one of them. Programs that cut texts in the middle of an emoji write them.
    """

    def __init__(self, path: Path) -> None:
        self.file, self.waiting = path.open("rb"), b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        while not self.waiting and (block := self.file.read(1 << 20)):
            block += self.file.readline(BYTES_PER_READ)  # so that no escape is cut
            self.waiting = replace_half_characters(block)
        found = self.waiting if size < 0 else self.waiting[:size]
        self.waiting = self.waiting[len(found) :]
        return found


def _check_row_groups(path: Path, names: list[str]) -> None:
    """Raise UserError where a large row group of a parquet file must hold a text that is too long, without reading it.

    A few kB can be unpacked to GBs.
    """
    metadata, start = pa.parquet.read_metadata(path), 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            size, name = column.total_uncompressed_size, column.path_in_schema
            if name in names and size > max(MAX_GROUP_BYTES, MAX_TEXT_BYTES * group.num_rows):
                raise _too_long_error(path, f"one of the rows {start} to {start + group.num_rows - 1}", name)
        start += group.num_rows


def _too_long_row(column: pa.Array) -> int | None:
    """Return the first row with a text of more than MAX_TEXT_BYTES, or None."""
    if pa.types.is_null(column.type):
        return None
    if pa.types.is_dictionary(column.type):
        length = pa.compute.binary_length(column.dictionary.cast(TEXT_TYPE)).take(column.indices)
    else:
        length = pa.compute.binary_length(column.cast(TEXT_TYPE))
    if (pa.compute.max(length).as_py() or 0) <= MAX_TEXT_BYTES:
        return None
    return pa.compute.index(pa.compute.greater(length, MAX_TEXT_BYTES), True).as_py()


def _too_long_error(path: Path, row: str, name: str) -> UserError:
    return UserError(
        f"{path}: {row} of column {name} holds a text of more than {MAX_TEXT_BYTES >> 20} MiB",
        "drop or shorten that text",
    )


def _as_large_string(column: pa.Array) -> pa.Array:
    """Convert a column to large_string; bytes that are not UTF-8, which parquet allows, become U+FFFD."""
    text = column.cast(TEXT_TYPE)
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        raw = text.cast(pa.large_binary()).to_pylist()
        text = pa.array([b if b is None else b.decode("utf-8", "replace") for b in raw], TEXT_TYPE)
    return text


def describe_errors(index: RowIndex, batches: Iterable[pa.Table], what: str) -> str:
    """Describe how many of a file's rows are errors, and the first error; "" where there are none.

    Raises UserError where the share of errors is above MAX_PROMPT_ERROR_RATE.
    """
    rows, wrong, first = 0, 0, None
    for batch in batches if index.has_errors else ():
        reasons = index.error_reasons(id_array(batch["id"]))
        if reasons and first is None:
            place = min(reasons)
            first = f"row {rows + place}: {reasons[place]}"
        rows, wrong = rows + len(batch), wrong + len(reasons)
    if wrong > MAX_PROMPT_ERROR_RATE * rows:
        raise UserError(
            f"{wrong} of {rows} {what} are errors, more than the {MAX_PROMPT_ERROR_RATE:.0%} allowed; "
            f"{first} (rows count from 0)",
            "fix or remove those rows; finished rows are kept, and written to the --out file",
        )
    return f"{wrong} of {rows} {what} are errors; {first} (rows count from 0)" if wrong else ""


def check_output_path(path: Path | None, suffix: str) -> None:
    """Raise UserError where the output file cannot be written, before anything is computed for it."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise UserError(f"--out writes {suffix} files, not {path.name}", f"--out {path.stem or 'out'}{suffix}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"the folder {path.absolute().parent} does not exist", f"mkdir -p {path.absolute().parent}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    of = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(one(kind) for one in of)


def write_vectors(path: Path, index: RowIndex, batches: Callable[[], Iterable[pa.Table]]) -> tuple[int, int]:
    """Write a .npy file with one row per text of `batches()`, in order, and return its shape; failed texts give NaN.

    The file is written some rows at a time, and completely or not at all. Raises UserError where no text could be
    encoded.
    """
    rows, dim, kind = 0, 0, np.dtype(np.float32)
    with _open_output(path) as file:
        for batch in batches():
            found = index.vectors(id_array(batch["id"]))
            if found.shape[1] and not dim:
                dim, kind = found.shape[1], found.dtype
                _npy_header(file, kind, 0, dim)
                np.full((rows, dim), np.nan, kind).tofile(file)
            rows += len(batch)
            (found if found.shape[1] else np.full((len(batch), dim), np.nan, kind)).tofile(file)
        if not dim:
            raise UserError(
                f"none of the {rows} texts could be encoded",
                "check that the texts are not empty: each must contain words",
            )
        file.seek(0)
        _npy_header(file, kind, rows, dim)
    return rows, dim


def _npy_header(file: IO[bytes], kind: np.dtype, rows: int, dim: int) -> None:
    """Write the .npy header, whose size does not depend on the number of rows, since numpy pads it."""
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)


def write_candidates(path: Path, index: RowIndex, batches: Callable[[], Iterable[pa.Table]]) -> int:
    """Write a parquet file with one row per prompt, completely or not at all; return its number of rows.

    Columns: `row` in the input, system, prompt, the other columns of SAMPLE_SCHEMA, and `error`.
    """
    kinds = [field for field in SAMPLE_SCHEMA if field.name != "id"]
    schema = pa.schema(
        [("row", pa.int64()), ("system", TEXT_TYPE), ("prompt", TEXT_TYPE), *kinds, ("error", TEXT_TYPE)]
    )
    rows = 0
    with _open_output(path) as file, pa.parquet.ParquetWriter(file, schema) as writer:
        for batch in batches():
            ids = id_array(batch["id"])
            made, reasons = index.rows_table(ids), index.error_reasons(ids)
            at = np.full(len(ids), -1)
            at[made["place"].to_numpy()] = np.arange(len(made))
            take = pa.array(at, mask=at < 0)
            columns = {"row": pa.array(np.arange(rows, rows + len(ids))), "system": batch["system"]}
            columns |= {"prompt": batch["prompt"]}
            columns |= {
                field.name: made[field.name].take(take) if len(made) else pa.nulls(len(ids), field.type)
                for field in kinds
            }
            columns |= {"error": pa.array([reasons.get(place) for place in range(len(ids))], TEXT_TYPE)}
            writer.write_table(pa.table(columns, schema=schema))
            rows += len(ids)
    return rows


@contextlib.contextmanager
def _open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name once it is complete. Raises UserError where it cannot be written."""
    try:
        with open_for_replacement(path) as file:
            yield file
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}", "choose another file: --out FILE"
        ) from error


@contextlib.contextmanager
def _arrow_errors_as_user_errors(path: Path) -> Iterator[None]:
    """Turn Arrow's error for a file that cannot be read into a UserError."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {why}", "check that the file is complete and of that type") from error
