"""Draws a run on the terminal when it ends."""

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from synthia_batch.runner.monitoring.result import RunResult

_log = logging.getLogger(__name__)


def show_picture(result: "RunResult") -> None:
    """Draw the run on stderr, if it has made samples and that is a terminal of at least 80 columns.

    On failure, the reason is logged for --verbose: the run is not affected.
    """
    stream = sys.stderr
    if not result.made or not stream.isatty():
        return
    try:
        lines = _draw(result, stream)
    # Ctrl-C too: the run has ended, and its exit code says how.
    except (Exception, KeyboardInterrupt) as exc:
        _log.debug(f"no picture of the run: {exc}")
        return
    if lines:
        with suppress(KeyboardInterrupt):
            show("\n".join(lines), file=stream)


def _draw(result: "RunResult", stream: TextIO) -> list[str]:
    """Return the lines of the picture, none if the terminal is too narrow."""
    from synthia_batch.core.console import measure_width  # An interrupt may come while these load, too.
    from synthia_batch.results.report.picture import ASCII, UNICODE, draw_picture
    from synthia_batch.results.report.summary import read_run_numbers

    symbols = UNICODE if _can_encode(UNICODE.levels, stream.encoding) else ASCII
    return [*draw_picture(read_run_numbers(result.directory), measure_width(stream) or 0, symbols)]


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True
