"""Ctrl-C for the second time, or where nothing listens for it: the command ends at once and says so.

Output that nobody reads to its end: `synthia-batch failed DIR | head` is no error.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from synthia_batch.job.loading.command_line import describe_command

EXIT_INTERRUPTED = 130


def stops_at_once(command: Callable[..., None], advice: str) -> Callable[..., None]:
    """Return `command` with a KeyboardInterrupt told on stderr: `advice`, then the command line.

    Here, not around the whole application: Typer makes an exit without a word of it.
    """

    @functools.wraps(command)
    def guarded(**values: Any) -> None:
        try:
            command(**values)
        except KeyboardInterrupt:
            print(f"stopped at once; {advice}: {describe_command()}", file=sys.stderr, flush=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return guarded


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
