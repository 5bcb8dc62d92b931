"""Texts for a terminal: made visible, folded in the middle, and several side by side where it is wide."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from synthia_batch.core.formatting import make_printable

COLUMN_WIDTH = 38
"""What a text needs to be readable beside others, in characters."""
FOLDED_LINES = 24
FOLDED_CHARACTERS = 1600


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Texts under a `title`, one below the other."""

    title: str
    texts: Sequence[str]


def print_columns(columns: Sequence[Column]) -> None:
    """Print `columns` to stdout: beside each other on a terminal that is wide enough, else below each other.

    Each has as many texts as any other.
    """
    if len(columns) > 1 and sys.stdout.isatty() and measure_width() // len(columns) >= COLUMN_WIDTH:
        _print_beside(columns)
        return
    for column in columns:
        print(column.title)
        for text in filter(None, column.texts):
            print("\n".join(f"  | {line}" for line in text.split("\n")))


def measure_width() -> int:
    """Return the columns of the terminal."""
    import shutil

    return shutil.get_terminal_size().columns


def make_visible(text: str) -> str:
    """Return `text` with everything but newlines that would not be seen, or would move a cursor, escaped."""
    return make_printable(text, keeps="\n")


def fold(text: str) -> str:
    """Return `text` with its middle left out where it is long, and said so."""
    lines = text.split("\n")
    if len(lines) > FOLDED_LINES:
        half = FOLDED_LINES // 2
        head, tail = "\n".join(lines[:half]), "\n".join(lines[-half:])
    else:
        head, tail = text, ""
    half = FOLDED_CHARACTERS // 2
    if len(head) + len(tail) > FOLDED_CHARACTERS:
        head, tail = head[:half], (tail or head)[-half:]
    left_out = len(text) - len(head) - len(tail)
    if not tail or left_out <= 0:
        return text
    return f"{head}\n[{left_out:,} characters left out; --full shows them]\n{tail}"


def _print_beside(columns: Sequence[Column]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SQUARE, show_lines=True, expand=True)
    for column in columns:
        table.add_column(Text(column.title), ratio=1, overflow="fold")
    for texts in zip(*(column.texts for column in columns), strict=True):
        table.add_row(*(Text(text) for text in texts))
    # Data, not decoration: no colours, no markup, and the width is the terminal's, also under a test's.
    Console(file=sys.stdout, width=measure_width(), color_system=None, markup=False, highlight=False).print(
        table
    )
