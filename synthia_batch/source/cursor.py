"""Going on with a file where the last reading of it stopped."""

from collections.abc import Callable, Iterator
from itertools import islice

from synthia_batch.rows import Row
from synthia_batch.source.base import Scan


class Cursor:
    """Keeps the iterator behind the last range read, open, for a range that follows it.

    Shards are read one after the other: without this each would start at the checkpoint or row
    group before it, and one large row group would be decoded once per shard in it.
    """

    def __init__(self) -> None:
        self._scan: Scan | None = None
        self._next = 0
        self._rows: Iterator[Row] = iter(())

    def read(
        self, scan: Scan, first: int, stop: int, iterate: Callable[[Scan, int], Iterator[Row]]
    ) -> Iterator[Row]:
        """Yield the rows `first` to `stop`, going on if possible, else with `iterate(scan, first)`."""
        if first >= stop:
            return
        rows = self._rows if self._scan is scan and self._next == first else iterate(scan, first)
        self._scan = None  # A range that is given up half-way leaves nothing to go on with.
        yield from islice(rows, stop - first)
        self._scan, self._next, self._rows = scan, stop, rows
