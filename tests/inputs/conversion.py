"""Inputs converted and read through: what the tests of containers share."""

from pathlib import Path

from synthia_batch.core.types import Row
from synthia_batch.inputs import Scan, Selection, Source, open_files, resolve_inputs


def open_paths(*paths: str, max_row_bytes: int = 2**26, **selection: object) -> tuple[Source, Scan]:
    source = open_files(resolve_inputs(paths, max_row_bytes=max_row_bytes).files)
    return source, source.scan(Selection(**selection), Path.cwd())  # type: ignore[arg-type]


def read_paths(*paths: str, **selection: object) -> list[Row]:
    source, scan = open_paths(*paths, **selection)  # type: ignore[arg-type]
    return list(source.read_rows(scan, 0, scan.rows))
