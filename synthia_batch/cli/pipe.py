"""Output that nobody reads to its end: `synthia-batch failed DIR | head` is no error."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer


def ends_with_its_reader(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command`, which only prints, so that it ends with 0 once its output is not read any more."""

    @functools.wraps(command)
    def guarded(**values: Any) -> None:
        try:
            command(**values)
            sys.stdout.flush()
        except BrokenPipeError:
            # What is still in the buffer would be refused again as the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return guarded
