"""Which rows repeat an earlier one, found in bounded memory by 64-bit hashes.

Rows with an id column must not repeat at all; a row without one has the id <hash>-<occurrence>,
so rows of equal content differ, and an id does not depend on where else in the file its row is.

Each hash goes to one of 128 buckets on disk by its top bits; each bucket is then counted by
itself. Memory is bounded by a bucket's distinct hashes: 80,000 for 10,000,000 rows.
"""

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from synthia_batch.core.types import Row
from synthia_batch.errors import IntegrityError, StorageFailed
from synthia_batch.inputs.records.faults import MAX_FAULTS

HASH_BYTES = 8
"""Of the hash by which rows are told apart."""
BLOCK_ROWS = 1 << 19
"""Rows held in memory: 4 MiB of hashes, some 30 MiB while they are sorted."""
BUCKET_BITS = 7
_ENTRY = np.dtype([("hash", "<u8"), ("row", "<u8")])
_HASH = np.dtype(">u8")
_ROW = np.dtype("<u8")
_NUMBER = np.dtype("<u4")
_HEADER = struct.Struct("<8sQ32s")
_MAGIC = b"SYNOCC01"


class DuplicateIndex:
    """How often a row's hash came up before it, for the rows where it did.

    On disk: magic, number of repeats (u64), BLAKE3 of the rest; then the repeats' row indexes
    (u64, ascending), then their numbers (u32). Little-endian.
    """

    def __init__(self, rows: NDArray[Any], numbers: NDArray[Any]) -> None:
        self._rows = rows
        self._numbers = numbers

    @classmethod
    def none(cls) -> "DuplicateIndex":
        """Return the occurrences of rows that are all different."""
        return cls(np.empty(0, _ROW), np.empty(0, _NUMBER))

    @classmethod
    def load(cls, path: Path) -> "DuplicateIndex":
        """Return what `encode` gave for `path`, mapped into memory and not read into it.

        Raises:
            IntegrityError: The file is missing or damaged.
        """
        try:
            with path.open("rb") as file:
                magic, count, digest = _HEADER.unpack(file.read(_HEADER.size))
                size = os.fstat(file.fileno()).st_size
            if magic != _MAGIC or size != _HEADER.size + count * (_ROW.itemsize + _NUMBER.itemsize):
                raise ValueError("it is not such a file, or cut short")
            if not count:
                return cls.none()
            rows = np.memmap(path, _ROW, "r", _HEADER.size, (count,))
            numbers = np.memmap(path, _NUMBER, "r", _HEADER.size + rows.nbytes, (count,))
            loaded = cls(rows, numbers)
            if loaded._digest() != digest:
                raise ValueError("its checksum does not match")
        except (OSError, ValueError, struct.error) as exc:
            raise IntegrityError(
                f"{path}: the record of repeated rows cannot be used: {exc}; nothing was touched\n"
                "  let `synthia-batch verify DIR --repair` remove it: the next run makes it from the input"
            ) from exc
        return loaded

    def encode(self) -> tuple[bytes | memoryview, ...]:
        """Return the bytes of the file that `load` reads, in pieces that need not be copied."""
        header = _HEADER.pack(_MAGIC, len(self), self._digest())
        return header, self._rows.view(np.uint8).data, self._numbers.view(np.uint8).data

    def __len__(self) -> int:
        """Return the number of rows that repeat an earlier one."""
        return len(self._rows)

    def number(self, row: int) -> int:
        """Return how many earlier rows have the hash of `row`: 0 for its first."""
        return self.list_numbers(row, row + 1)[0]

    def list_numbers(self, first: int, stop: int) -> list[int]:
        """Return the number of every row from `first` to `stop` (excluded)."""
        numbers = np.zeros(stop - first, _NUMBER)
        start, end = np.searchsorted(self._rows, np.array([first, stop], _ROW))
        numbers[self._rows[start:end] - np.uint64(first)] = self._numbers[start:end]
        return list(numbers.tolist())

    def cut(self, first: int, stop: int) -> "DuplicateIndex":
        """Return those of the rows `first` to `stop` (excluded), by their index from `first` on."""
        start, end = np.searchsorted(self._rows, np.array([first, stop], _ROW))
        return DuplicateIndex(self._rows[start:end] - np.uint64(first), self._numbers[start:end])

    def list_rows(self, start: int, count: int) -> list[int]:
        """Return `count` of the repeating rows, in order, passing over the first `start` of them."""
        return list(self._rows[start : start + count].tolist())

    def _digest(self) -> bytes:
        return blake3(self._rows.tobytes()).update(self._numbers.tobytes()).digest()


class HashIndex:
    """Takes the hash of every row in order, and says in the end which rows repeat."""

    def __init__(self, scratch: Path, block_rows: int = BLOCK_ROWS) -> None:
        self._scratch = scratch
        self._block_bytes = block_rows * HASH_BYTES
        self._block = bytearray()
        self._rows = 0
        self._stack = ExitStack()
        self._directory: Path | None = None

    def __enter__(self) -> "HashIndex":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def add(self, hashes: bytes) -> None:
        """Take the hashes of the next rows, 8 bytes each. Raises StorageFailed."""
        self._block += hashes
        if len(self._block) >= self._block_bytes:
            with self._report_disk():
                self._spill()

    def finish(self, rows: int) -> DuplicateIndex:
        """Return the occurrences of all the rows taken, of which there must be `rows`.

        Raises:
            StorageFailed: The scratch directory cannot be written.
            RuntimeError: Another number of hashes was taken: ids would go to the wrong rows.
        """
        taken = self._rows + len(self._block) // HASH_BYTES
        if taken != rows:
            raise RuntimeError(f"{taken} hashes were taken for {rows} rows")
        if self._directory is None:
            block = self._take_block()
            numbers = np.zeros(len(block), _NUMBER)
            _Counter(numbers).count(block)
            repeats = np.flatnonzero(numbers)
            return DuplicateIndex(repeats.astype(_ROW), numbers[repeats])
        with self._report_disk():
            self._spill()
            return self._count_buckets(self._directory)

    def _count_buckets(self, directory: Path) -> DuplicateIndex:
        numbers = _map_new_file(directory / "numbers", self._rows)
        for bucket in sorted(directory.glob("bucket-*")):
            counter = _Counter(numbers)
            for entries in _read_entries(bucket, self._block_bytes // HASH_BYTES):
                counter.count(entries)
            bucket.unlink()
        return _gather(numbers, directory)

    def _spill(self) -> None:
        if self._directory is None:
            directory = tempfile.TemporaryDirectory(prefix="ids-", dir=self._scratch)
            self._directory = Path(self._stack.enter_context(directory))
        entries = self._take_block()
        buckets = entries["hash"] >> np.uint64(64 - BUCKET_BITS)
        order = np.argsort(buckets, kind="stable")
        bounds = np.searchsorted(buckets[order], np.arange((1 << BUCKET_BITS) + 1))
        entries = entries[order]
        for bucket, (start, stop) in enumerate(pairwise(bounds)):
            if start < stop:
                with (self._directory / f"bucket-{bucket:03}").open("ab") as file:
                    file.write(entries[start:stop].data)

    @contextmanager
    def _report_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise StorageFailed(
                f"{self._scratch}: temporary files cannot be written: {exc.strerror}; "
                "free 20 bytes per input row there, then run the same command again"
            ) from exc

    def _take_block(self) -> NDArray[Any]:
        entries = np.empty(len(self._block) // HASH_BYTES, _ENTRY)
        entries["hash"] = np.frombuffer(self._block, _HASH)
        entries["row"] = np.arange(self._rows, self._rows + len(entries))
        self._rows += len(entries)
        self._block = bytearray()
        return entries


class _Counter:
    """Counts the hashes of one bucket, block by block, into an array of numbers by row."""

    def __init__(self, numbers: NDArray[Any]) -> None:
        self._numbers = numbers
        self._hashes = np.empty(0, _ROW)
        self._counts = np.empty(0, np.int64)

    def count(self, entries: NDArray[Any]) -> None:
        """Write the numbers of the rows in `entries`, which are in the order of their rows."""
        order = np.argsort(entries["hash"], kind="stable")
        hashes = entries["hash"][order]
        is_first = np.ones(len(hashes), bool)
        is_first[1:] = hashes[1:] != hashes[:-1]
        starts = np.flatnonzero(is_first)
        group = np.cumsum(is_first) - 1
        distinct = hashes[starts]
        numbers = np.arange(len(hashes)) - starts[group] + self._count_before(distinct)[group]
        repeats = np.flatnonzero(numbers)
        self._numbers[entries["row"][order[repeats]]] = numbers[repeats]
        self._add(distinct, np.diff(starts, append=len(hashes)))

    def _count_before(self, distinct: NDArray[Any]) -> NDArray[Any]:
        if not len(self._hashes):
            return np.zeros(len(distinct), np.int64)
        places = np.minimum(np.searchsorted(self._hashes, distinct), len(self._hashes) - 1)
        return np.where(self._hashes[places] == distinct, self._counts[places], 0)

    def _add(self, distinct: NDArray[Any], counts: NDArray[Any]) -> None:
        if not len(self._hashes):
            self._hashes, self._counts = distinct, counts
            return
        together = np.concatenate([self._hashes, distinct])
        self._hashes, inverse = np.unique(together, return_inverse=True)
        totals = np.zeros(len(self._hashes), np.int64)
        np.add.at(totals, inverse, np.concatenate([self._counts, counts]))
        self._counts = totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Two rows of one id."""

    first: Row
    second: Row


def find_duplicates(
    duplicates: DuplicateIndex, read_rows: Callable[[int, int], Iterator[Row]]
) -> Iterator[Duplicate]:
    """Yield the rows that have the id of an earlier row, in order; for inputs with an id column.

    Equal hashes are only a suspicion: the ids themselves are read again and compared. That takes
    a second pass up to the suspects, eleven at a time; all but the first such pass are rare.
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


def _gather(numbers: NDArray[Any], directory: Path) -> DuplicateIndex:
    """Return the occurrences that `numbers`, by row, hold; in mapped files that go with `directory`."""
    count = 0
    with (directory / "rows").open("wb") as rows_file, (directory / "repeats").open("wb") as numbers_file:
        for start in range(0, len(numbers), BLOCK_ROWS):
            block = numbers[start : start + BLOCK_ROWS]
            found = np.flatnonzero(block)
            rows_file.write((found + start).astype(_ROW).data)
            numbers_file.write(block[found].data)
            count += len(found)
    if not count:
        return DuplicateIndex.none()
    # A mapping outlives the name of its file.
    rows = np.memmap(directory / "rows", _ROW, "r", 0, (count,))
    return DuplicateIndex(rows, np.memmap(directory / "repeats", _NUMBER, "r", 0, (count,)))


def _map_new_file(path: Path, length: int) -> NDArray[Any]:
    """Return a mapped array of zeros."""
    size = length * _NUMBER.itemsize
    with path.open("wb") as file:
        # A full disk must be an error here: when a mapped hole is written to, it is a SIGBUS.
        os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(path, _NUMBER, "r+", 0, (length,))


def _read_entries(path: Path, count: int) -> Iterator[NDArray[Any]]:
    with path.open("rb") as file:
        while len(entries := np.fromfile(file, _ENTRY, count)):
            yield entries
