"""Where in the input a sample comes from."""

from collections.abc import Callable, Sequence

from synthia_batch.core.types import InputFile
from synthia_batch.errors import SynthiaBatchError
from synthia_batch.inputs import Scan, open_files


def open_places(files: Sequence[InputFile], scan: Scan, samples_per_row: int) -> Callable[[int], str]:
    """Return what says file:line for the ordinal of a sample, in the input that was scanned.

    It reads the file beside whoever else does, a thousand rows at most for each answer: for a few of
    them. An input that has gone is named with the row, counted from 0.
    """
    source = open_files(files)

    def locate(ordinal: int) -> str:
        index = ordinal // samples_per_row
        try:
            row = next(source.read_rows(scan, index, index + 1))
        except (SynthiaBatchError, StopIteration):
            return f"{source.shown}: row {index}"
        return source.locate(row)

    return locate
