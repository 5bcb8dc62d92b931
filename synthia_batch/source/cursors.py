"""Going on with a file where an earlier reading of it stopped."""

from collections.abc import Callable, Iterator
from itertools import islice

from synthia_batch.core.types import Row
from synthia_batch.source.base import Scan

MAX_PARKED = 4
"""Iterators kept open, each with a batch of rows in memory. A job has two: feeding and encoding."""


class Cursors:
    """Keeps the iterators behind the last ranges read, open, for ranges that follow them.

    Shards are read one after the other: without this each would start at the checkpoint or row
    group before it, and one large row group would be decoded once per shard in it.
    """

    def __init__(self) -> None:
        self._scan: Scan | None = None
        self._parked: dict[int, Iterator[Row]] = {}

    def read(
        self, scan: Scan, first: int, stop: int, iterate: Callable[[Scan, int], Iterator[Row]]
    ) -> Iterator[Row]:
        """Yield the rows `first` to `stop`, going on if possible, else with `iterate(scan, first)`."""
        if first >= stop:
            return
        if self._scan is not scan:
            self._scan, self._parked = scan, {}
        # Taken out while it is in use: a range that is given up half-way leaves nothing behind.
        rows = self._parked.pop(first, None) or iterate(scan, first)
        yield from islice(rows, stop - first)
        if stop < scan.rows and self._scan is scan:
            self._parked[stop] = rows
            if len(self._parked) > MAX_PARKED:
                self._parked.pop(next(iter(self._parked)))
