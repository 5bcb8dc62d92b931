"""Ctrl-C for the second time, or where nothing listens for it: the command ends at once and says so."""

import functools
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
