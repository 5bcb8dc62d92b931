"""The one place that prints: whatever a text has, only printable characters reach the terminal.

Names of files and models, values of job files and what a server answers are written by others.
"""

import sys
from typing import TextIO

from synthia_batch.core.formatting import make_printable
from synthia_batch.core.masking import mask_text

_KEPT = "\n\t"


def show(
    *lines: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False
) -> None:
    """Print like `print`, with unprintable characters escaped; what goes to stderr is masked, too.

    stdout gets results. They hold the user's data, in which an address is no secret.
    """
    stream = file or sys.stdout
    clean = clean_message if stream is sys.stderr else clean_text
    print(*(clean(str(line)) for line in lines), sep=sep, end=end, file=stream, flush=flush)


def clean_text(text: str) -> str:
    """Return `text` without unprintable characters, except newlines and tabs."""
    return make_printable(text, keeps=_KEPT)


def clean_message(text: str) -> str:
    """Return a message without secrets and unprintable characters."""
    return clean_text(mask_text(text))
