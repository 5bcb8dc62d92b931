"""Where in the input a sample comes from."""

from collections.abc import Callable
from pathlib import Path

from synthia_batch.errors import SynthiaBatchError
from synthia_batch.source import Scan, open_source


def open_places(path: Path, scan: Scan, samples_per_row: int) -> Callable[[int], str]:
    """Return what says file:line for the ordinal of a sample, in the input that was scanned.

    It reads the file beside whoever else does, a thousand rows at most for each answer: for a few of
    them. An input that has gone is named with the row, counted from 0.
    """
    source = open_source(path)

    def locate(ordinal: int) -> str:
        index = ordinal // samples_per_row
        try:
            row = next(source.read_rows(scan, index, index + 1))
        except (SynthiaBatchError, StopIteration):
            return f"{path}: row {index}"
        return f"{path}:{row.line}"

    return locate
