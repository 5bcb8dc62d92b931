"""Inputs that need pyarrow: zstd streams, datasets written by `save_to_disk`, and the samples of runs."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from synthia_batch.core.errors import InputRefused

ROWS_PER_GROUP = 10_000
ROWS_PER_BATCH = 1000
"""Samples of a run in memory at a time."""
_ERRORS = (pa.ArrowException, OSError, ValueError)


def open_zstd(path: Path) -> Any:
    """Return a stream of the decompressed bytes of a zstd file. Raises OSError."""
    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


def list_dataset_files(directory: Path) -> list[Path]:
    """Return the .arrow files of a dataset written by `save_to_disk`, in its order.

    Raises:
        InputRefused: Its state file is missing or damaged.
    """
    state = directory / "state.json"
    try:
        entries = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        return [directory / entry["filename"] for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputRefused([f"{state}: not a state file of save_to_disk, or damaged: {exc!r}"]) from exc


def write_dataset(files: Sequence[Path], target: Path, shown: Path | str) -> None:
    """Write the rows of the .arrow files as one Parquet file."""
    _write_batches((batch for file in files for batch in _read_batches(file, shown)), target, shown)


def write_samples(
    files: Sequence[Path],
    target: Path,
    shown: Path | str,
    *,
    name: str,
    kept: Sequence[str],
    has_systems: bool,
    has_numbers: bool,
) -> None:
    """Write the samples in a run's parts as one Parquet file: `id`, the `kept` columns, and structs `name`.

    Raises:
        InputRefused: A part cannot be read, or is damaged.
        OSError: The target cannot be written.
    """

    def convert(batch: pa.RecordBatch) -> pa.RecordBatch:
        column = dict(zip(batch.schema.names, batch.columns, strict=True))
        own = [each for each in column if each not in kept]
        ids = [column["id"]]
        ids += [column["system"]] if has_systems else []
        ids += [column["sample_index"].cast(pa.string())] if has_numbers else []
        made = pa.StructArray.from_arrays([column[each] for each in own], own)
        columns = {
            "id": pc.binary_join_element_wise(*ids, "/"),
            **{each: column[each] for each in kept if each != "id"},
            name: made,
        }
        # The features of kept columns stay with them.
        fields = [
            batch.schema.field(each) if each in kept else pa.field(each, columns[each].type)
            for each in columns
        ]
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields))

    def read() -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                part = parquet.ParquetFile(file, page_checksum_verification=True)
                yield from map(convert, part.iter_batches(batch_size=ROWS_PER_BATCH, use_threads=False))
            except _ERRORS as exc:
                raise InputRefused([f"{file}: not a readable part of a run, or damaged: {exc}"]) from exc

    _write_batches(read(), target, shown)


def _write_batches(batches: Iterator[pa.RecordBatch], target: Path, shown: Path | str) -> None:
    writer: parquet.ParquetWriter | None = None
    sink = pa.OSFile(str(target), "wb")
    try:
        for batch in batches:
            if writer is None:
                writer = parquet.ParquetWriter(sink, batch.schema, write_page_checksum=True)
            writer.write_batch(batch, row_group_size=ROWS_PER_GROUP)
    finally:
        if writer is not None:
            writer.close()
        sink.close()
    if writer is None:
        raise InputRefused([f"{shown}: there are no rows"])


def _read_batches(file: Path, shown: Path | str) -> Any:
    try:
        with pa.memory_map(str(file)) as source:
            for batch in pa.ipc.open_stream(source):
                batch.validate(full=True)
                yield batch
    except _ERRORS as exc:
        raise InputRefused([f"{shown}: {file.name}: not a readable Arrow file, or damaged: {exc}"]) from exc
