"""Input files that need pyarrow: zstd streams, and datasets written by `save_to_disk`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from synthia_batch.errors import InputRefused

ROWS_PER_GROUP = 10_000
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
    """Write the rows of the .arrow files as one Parquet file.

    Raises:
        InputRefused: One of them cannot be read, or is damaged.
        OSError: The target cannot be written.
    """
    writer: parquet.ParquetWriter | None = None
    sink = pa.OSFile(str(target), "wb")
    try:
        for file in files:
            for batch in _read_batches(file, shown):
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
