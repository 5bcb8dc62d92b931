"""What this process and its children have printed since a moment, if their output goes to files.

A worker's output is redirected to its log; on other machines Ray writes it to a file of its own.
"""

import os
import stat
from collections.abc import Iterator

MOST_BYTES = 4 << 20
"""Read from the end of each file: an error is among the last things printed."""


class ProcessLog:
    """The output of this process from the moment of creation on."""

    def __init__(self) -> None:
        self._starts = dict(_list_files())

    def read(self) -> str:
        """Return what has been printed, stdout first; "" if the output goes elsewhere than to files."""
        return "".join(_read(descriptor, start) for descriptor, start in self._starts.items())


def _list_files() -> Iterator[tuple[int, int]]:
    """Yield stdout and stderr with their sizes in bytes, one of the two if both are the same file."""
    seen: set[tuple[int, int]] = set()
    for descriptor in (1, 2):
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            yield descriptor, status.st_size


def _read(descriptor: int, start: int) -> str:
    try:
        # Opened anew: the descriptor itself is for writing only.
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - MOST_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
