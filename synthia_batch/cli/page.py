"""A page on a terminal that is updated in place."""

import os
import shutil
import sys
import unicodedata

_WIDTHS = {"W": 2, "F": 2}


class Page:
    """Lines on a terminal that are updated in place."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def draw(self, lines: list[str]) -> None:
        """Replace the page with `lines`, cut to the terminal's width and height."""
        size = _measure_terminal()
        # Lines that wrap and pages that scroll cannot be replaced in place.
        shown = [_cut(line, size.columns - 1) for line in lines[: size.lines - 1]]
        # One write: a busy machine may stop this process between two.
        sys.stdout.write(self._erase(size.columns) + "".join(f"{line}\n" for line in shown))
        sys.stdout.flush()
        self._lines = shown

    def clear(self) -> None:
        """Remove the page; the next output takes its place."""
        sys.stdout.write(self._erase(_measure_terminal().columns))
        self._lines = []

    def leave(self) -> None:
        """Keep the page as it is."""
        if self._lines:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()

    def _erase(self, columns: int) -> str:
        """Return what removes the page from a terminal of `columns`, in which its lines may have wrapped."""
        rows = sum(max(1, -(-_measure(line) // max(1, columns))) for line in self._lines)
        return f"\x1b[{rows}F\x1b[J" if rows else ""


def _measure_terminal() -> os.terminal_size:
    """Return the terminal's own size: COLUMNS and LINES may be those of another."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()
    return size if size.columns and size.lines else shutil.get_terminal_size()


def _measure(text: str) -> int:
    """Return how many columns a terminal shows `text` in."""
    return sum(_WIDTHS.get(unicodedata.east_asian_width(char), 1) for char in text)


def _cut(text: str, columns: int) -> str:
    while _measure(text) > columns:
        text = text[:-1]
    return text
