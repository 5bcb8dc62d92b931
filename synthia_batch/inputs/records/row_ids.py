"""The rows that repeat an earlier one, by 64-bit hashes.

Ids of an id column must be unique. A row without one has the id <hash>-<occurrence>: rows of equal
content differ, and an id does not depend on the position of its row.
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import Row
from synthia_batch.inputs.records.faults import MAX_FAULTS

HASH_BYTES = 8
"""Size of the hash that distinguishes rows."""
ROW_DTYPE = np.dtype("<u8")
NUMBER_DTYPE = np.dtype("<u4")
_HEADER = struct.Struct("<8sQ32s")
_MAGIC = b"SYNOCC01"


class DuplicateIndex:
    """The number of earlier rows with the same hash, for each row that has any.

    On disk: magic, number of repeats (u64), BLAKE3 of the rest; then the repeats' row indexes
    (u64, ascending), then their numbers (u32). Little-endian.
    """

    def __init__(self, rows: NDArray[Any], numbers: NDArray[Any]) -> None:
        self._rows = rows
        self._numbers = numbers

    @classmethod
    def none(cls) -> "DuplicateIndex":
        return cls(np.empty(0, ROW_DTYPE), np.empty(0, NUMBER_DTYPE))

    @classmethod
    def load(cls, path: Path) -> "DuplicateIndex":
        """Return the index that `encode` wrote to `path`, memory-mapped.

        Raises:
            IntegrityError: The file is missing or damaged.
        """
        try:
            with path.open("rb") as file:
                magic, count, digest = _HEADER.unpack(file.read(_HEADER.size))
                size = os.fstat(file.fileno()).st_size
            if magic != _MAGIC or size != _HEADER.size + count * (ROW_DTYPE.itemsize + NUMBER_DTYPE.itemsize):
                raise ValueError("another kind of file, or truncated")
            if not count:
                return cls.none()
            rows = np.memmap(path, ROW_DTYPE, "r", _HEADER.size, (count,))
            numbers = np.memmap(path, NUMBER_DTYPE, "r", _HEADER.size + rows.nbytes, (count,))
            loaded = cls(rows, numbers)
            if loaded._digest() != digest:
                raise ValueError("its checksum does not match")
        except (OSError, ValueError, struct.error) as exc:
            raise IntegrityError(
                f"{path}: the index of repeated rows is damaged: {exc}; nothing was touched\n"
                "  remove it with `synthia-batch verify DIR --repair`: the next run rebuilds it"
            ) from exc
        return loaded

    def encode(self) -> tuple[bytes | memoryview, ...]:
        """Return the bytes of the file that `load` reads, in parts that are not copied."""
        header = _HEADER.pack(_MAGIC, len(self), self._digest())
        return header, self._rows.view(np.uint8).data, self._numbers.view(np.uint8).data

    def __len__(self) -> int:
        """Return the number of rows that repeat an earlier one."""
        return len(self._rows)

    def number(self, row: int) -> int:
        """Return the number of earlier rows with the hash of `row`."""
        return self.list_numbers(row, row + 1)[0]

    def list_numbers(self, first: int, stop: int) -> list[int]:
        """Return the number of every row from `first` to `stop` (excluded)."""
        numbers = np.zeros(stop - first, NUMBER_DTYPE)
        start, end = np.searchsorted(self._rows, np.array([first, stop], ROW_DTYPE))
        numbers[self._rows[start:end] - np.uint64(first)] = self._numbers[start:end]
        return list(numbers.tolist())

    def cut(self, first: int, stop: int) -> "DuplicateIndex":
        """Return the index of the rows `first` to `stop` (excluded), with rows counted from `first`."""
        start, end = np.searchsorted(self._rows, np.array([first, stop], ROW_DTYPE))
        return DuplicateIndex(self._rows[start:end] - np.uint64(first), self._numbers[start:end])

    def list_rows(self, start: int, count: int) -> list[int]:
        """Return `count` of the repeating rows, in order, after the first `start` of them."""
        return list(self._rows[start : start + count].tolist())

    def _digest(self) -> bytes:
        return blake3(self._rows.tobytes()).update(self._numbers.tobytes()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Two rows with the same id."""

    first: Row
    second: Row


def find_duplicates(
    duplicates: DuplicateIndex, read_rows: Callable[[int, int], Iterator[Row]]
) -> Iterator[Duplicate]:
    """Yield the rows with the id of an earlier row, in order; for inputs with an id column.

    Equal hashes do not prove equal ids, so the ids are read again and compared: one pass over the rows
    for every eleven suspects. More than one pass is rare.
    """
    step = MAX_FAULTS + 1
    for start in range(0, len(duplicates), step):
        suspects = [next(read_rows(row, row + 1)) for row in duplicates.list_rows(start, step)]
        wanted = {suspect.id for suspect in suspects}
        firsts: dict[str, Row] = {}
        for row in read_rows(0, suspects[-1].index):
            if row.id in wanted:
                firsts.setdefault(row.id, row)
        for suspect in suspects:
            first = firsts.get(suspect.id)
            if first is not None and first.index < suspect.index:
                yield Duplicate(first=first, second=suspect)
