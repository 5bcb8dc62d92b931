"""Print texts to a terminal: escaped, shortened in the middle, and side by side if it is wide enough."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from synthia_batch.core.formatting import make_printable
from synthia_batch.core.terminal import show

COLUMN_WIDTH = 38
"""Minimum width for columns side by side, in characters."""
FOLDED_LINES = 24
FOLDED_CHARACTERS = 1600


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Texts below each other under a `title`."""

    title: str
    texts: Sequence[str]


def print_columns(columns: Sequence[Column]) -> None:
    """Print `columns`, all with the same number of texts: side by side if the terminal is wide enough."""
    if len(columns) > 1 and sys.stdout.isatty() and measure_width() // len(columns) >= COLUMN_WIDTH:
        _print_side_by_side(columns)
        return
    for column in columns:
        show(column.title)
        for text in filter(None, column.texts):
            show("\n".join(f"  | {line}" for line in text.split("\n")))


def measure_width() -> int:
    """Return the width of the terminal in characters."""
    return shutil.get_terminal_size().columns


def make_visible(text: str) -> str:
    """Return `text` with unprintable and control characters escaped, except newlines."""
    return make_printable(text, keeps="\n")


def fold(text: str) -> str:
    """Return `text`; if it is long, a note replaces its middle."""
    lines = text.split("\n")
    if len(lines) > FOLDED_LINES:
        half = FOLDED_LINES // 2
        head, tail = "\n".join(lines[:half]), "\n".join(lines[-half:])
    else:
        head, tail = text, ""
    half = FOLDED_CHARACTERS // 2
    if len(head) + len(tail) > FOLDED_CHARACTERS:
        head, tail = head[:half], (tail or head)[-half:]
    omitted = len(text) - len(head) - len(tail)
    if not tail or omitted <= 0:
        return text
    return f"{head}\n[{omitted:,} characters omitted; show them with --full]\n{tail}"


def _print_side_by_side(columns: Sequence[Column]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SQUARE, show_lines=True, expand=True)
    for column in columns:
        table.add_column(Text(column.title), ratio=1, overflow="fold")
    for texts in zip(*(column.texts for column in columns), strict=True):
        table.add_row(*(Text(text) for text in texts))
    # Data, not decoration: no colours, no markup.
    Console(file=sys.stdout, width=measure_width(), color_system=None, markup=False, highlight=False).print(
        table
    )
