"""Parts as JSON in the place of Parquet: the same rows and metadata, at a small part of the time.

Writer and reader keep their interfaces, and what they do with rows is the package's own: which columns there
are, what stands in them, which samples they stand for. Parquet itself has tests of its own.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json, to_json

from synthia_batch.results.verify import shard
from synthia_batch.runner.directory import assembler
from synthia_batch.storage.parts import reader
from synthia_batch.storage.parts.columns import refuse_part
from synthia_batch.storage.parts.reader import Places, SampleGrid
from synthia_batch.storage.parts.schema import FAILED_COLUMNS, PartFormat, list_data_columns
from synthia_batch.storage.publish import EncodedPart

_REPLACED = (
    (assembler, "open_data_part"),
    (assembler, "open_failed_part"),
    (reader, "read_part"),
    (reader, "_place"),
    (reader, "_place_rows"),
    (shard, "find_page_damage"),
    (shard, "holds_rows"),
)
_REAL = {(module, name): getattr(module, name) for module, name in _REPLACED}


class _Encoder:
    """Stands for PartEncoder."""

    def __init__(self, columns: Sequence[Any], part_format: PartFormat) -> None:
        self.rows = 0
        self._columns = columns
        self._format = part_format
        self._values: list[list[Any]] = []

    def add(self, record: Any) -> None:
        self.rows += 1
        self._values.append([column.get(record, self._format) for column in self._columns])

    def finish(self) -> EncodedPart | None:
        if not self._values:
            return None
        names = [column.name for column in self._columns]
        content = to_json([dict(self._format.metadata), names, self._values])
        return EncodedPart(content=content, rows=self.rows, rows_digest=_digest(content))


class _Table:
    """The rows of a part, as a table of pyarrow is asked for them."""

    def __init__(self, path: Path, columns: Sequence[str] | None) -> None:
        try:
            self.metadata, names, rows = from_json(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise refuse_part(path, f"cannot be read as a part: {exc}") from exc
        self.rows = [dict(zip(names, row, strict=True)) for row in rows]
        self.column_names = [name for name in names if columns is None or name in columns]

    def to_pylist(self) -> list[dict[str, Any]]:
        return self.rows


def use_parts(*, are_parquet: bool) -> None:
    """Have parts written and read as Parquet, or as JSON."""
    for module, name in _REPLACED:
        setattr(module, name, _REAL[module, name] if are_parquet else _STAND_INS[name])


def _open_data_part(part_format: PartFormat) -> _Encoder:
    return _Encoder(list_data_columns(part_format.optional), part_format)


def _open_failed_part(part_format: PartFormat) -> _Encoder:
    return _Encoder(FAILED_COLUMNS, part_format)


def _place(path: Path, table: _Table, grid: SampleGrid) -> Places:
    known = {name: number for number, name in enumerate(grid.systems)}
    return Places(
        path=path,
        row=np.array([row["row_index"] for row in table.rows], dtype=np.int64),
        index=np.array([row["sample_index"] for row in table.rows], dtype=np.int64),
        system=np.array([known.get(row["system"], -1) for row in table.rows], dtype=np.int64)
        if "system" in table.column_names
        else None,
    )


def _place_rows(path: Path, grid: SampleGrid, schema: Any, metadata: Mapping[str, str]) -> Places:
    table = _Table(path, None)
    if table.column_names != schema.names:
        raise refuse_part(path, "has other columns than its run")
    for key, value in metadata.items():
        if table.metadata.get(key) != value:
            raise refuse_part(path, f"is of another run: its {key} is not {value}")
    return _place(path, table, grid)


def _holds_rows(path: Path, rows_digest: str) -> bool:
    return _digest(path.read_bytes()) == rows_digest


def _digest(content: bytes) -> str:
    return sha256(b"rows" + content).hexdigest()


_STAND_INS: dict[str, Any] = {
    "open_data_part": _open_data_part,
    "open_failed_part": _open_failed_part,
    "read_part": lambda path, columns=None: _Table(path, columns),
    "_place": _place,
    "_place_rows": _place_rows,
    "find_page_damage": lambda path: None,
    "holds_rows": _holds_rows,
}
