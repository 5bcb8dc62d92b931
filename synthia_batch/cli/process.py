"""How commands end early: on Ctrl-C, and when the reader of their output closes it, as `head` does."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from synthia_batch.core.terminal import show
from synthia_batch.job.loading.command_line import describe_command

EXIT_INTERRUPTED = 130


def reports_interrupts(command: Callable[..., None], advice: str) -> Callable[..., None]:
    """Return `command` such that Ctrl-C prints `advice` and the command line, and exits with 130.

    Wraps each command since Typer turns a KeyboardInterrupt into a silent exit.
    """

    @functools.wraps(command)
    def guarded(**values: Any) -> None:
        try:
            command(**values)
        except KeyboardInterrupt:
            show(f"stopped at once; {advice}: {describe_command()}", file=sys.stderr, flush=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return guarded


def tolerates_closed_output(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command`, which only prints, such that it exits with 0 once its output is closed."""

    @functools.wraps(command)
    def guarded(**values: Any) -> None:
        try:
            command(**values)
            sys.stdout.flush()
        except BrokenPipeError:
            # Otherwise flushing the buffer would fail again when the interpreter exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return guarded
