"""Finds the rows whose hash repeats an earlier one, in bounded memory.

Each hash goes to one of 128 buckets on disk by its top bits; each bucket is then counted on its own.
Memory is bounded by a bucket's distinct hashes: 80,000 for 10,000,000 rows.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.errors import StorageFailed
from synthia_batch.inputs.records.row_ids import HASH_BYTES, NUMBER_DTYPE, ROW_DTYPE, DuplicateIndex

BLOCK_ROWS = 1 << 19
"""Rows held in memory: 4 MiB of hashes, about 30 MiB while they are sorted."""
BUCKET_BITS = 7
_ENTRY = np.dtype([("hash", "<u8"), ("row", "<u8")])
_HASH = np.dtype(">u8")


class HashIndex:
    """Takes the hash of every row in order, and returns the rows that repeat."""

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
        """Add the hashes of the next rows, 8 bytes each. Raises StorageFailed."""
        self._block += hashes
        if len(self._block) >= self._block_bytes:
            with self._report_disk():
                self._spill()

    def finish(self, rows: int) -> DuplicateIndex:
        """Return the index of all rows added. There must be `rows`, or ids would go to the wrong rows.

        Raises:
            StorageFailed: The scratch directory cannot be written.
            RuntimeError: The number of hashes is not `rows`.
        """
        added = self._rows + len(self._block) // HASH_BYTES
        if added != rows:
            raise RuntimeError(f"expected {rows} hashes, got {added}")
        if self._directory is None:
            block = self._take_block()
            numbers = np.zeros(len(block), NUMBER_DTYPE)
            _Counter(numbers).count(block)
            repeats = np.flatnonzero(numbers)
            return DuplicateIndex(repeats.astype(ROW_DTYPE), numbers[repeats])
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
        return _collect(numbers, directory)

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
                f"{self._scratch}: cannot write temporary files: {exc.strerror}; "
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
        self._hashes = np.empty(0, ROW_DTYPE)
        self._counts = np.empty(0, np.int64)

    def count(self, entries: NDArray[Any]) -> None:
        """Write the numbers of the rows in `entries`, which are in row order."""
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


def _collect(numbers: NDArray[Any], directory: Path) -> DuplicateIndex:
    """Return the index of the rows with a number, in mapped files below `directory`."""
    count = 0
    with (directory / "rows").open("wb") as rows_file, (directory / "repeats").open("wb") as numbers_file:
        for start in range(0, len(numbers), BLOCK_ROWS):
            block = numbers[start : start + BLOCK_ROWS]
            found = np.flatnonzero(block)
            rows_file.write((found + start).astype(ROW_DTYPE).data)
            numbers_file.write(block[found].data)
            count += len(found)
    if not count:
        return DuplicateIndex.none()
    # A mapping stays valid after its file is unlinked.
    rows = np.memmap(directory / "rows", ROW_DTYPE, "r", 0, (count,))
    return DuplicateIndex(rows, np.memmap(directory / "repeats", NUMBER_DTYPE, "r", 0, (count,)))


def _map_new_file(path: Path, length: int) -> NDArray[Any]:
    size = length * NUMBER_DTYPE.itemsize
    with path.open("wb") as file:
        # A full disk must be an error here: writing to a mapped hole raises SIGBUS.
        os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(path, NUMBER_DTYPE, "r+", 0, (length,))


def _read_entries(path: Path, count: int) -> Iterator[NDArray[Any]]:
    with path.open("rb") as file:
        while len(entries := np.fromfile(file, _ENTRY, count)):
            yield entries
