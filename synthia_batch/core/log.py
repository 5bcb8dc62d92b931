"""Messages for the person at the terminal: Python's logging, written above the progress bar.

Modules log under their own names. INFO is for what the user should know, such as a lost worker.
PER_SAMPLE is for failed samples, which `--quiet` hides. DEBUG is for what `--verbose` adds.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from synthia_batch.core.errors import SynthiaBatchError
from synthia_batch.core.files import open_to_append
from synthia_batch.core.terminal import clean_message

PACKAGE = "synthia_batch"
PER_SAMPLE = 15
"""The level of messages about single samples, between DEBUG and INFO."""


class _CleanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the message without secrets and unprintable characters."""
        return clean_message(super().format(record))


class _AboveTheBar(logging.Handler):
    """Writes messages to `stream`, stderr if None, without breaking a progress bar there."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self.setFormatter(_CleanFormatter())
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # 30 ms that `--help` does without

        stream = self._stream or sys.stderr
        with suppress(OSError, ValueError):  # A terminal that is gone is no reason to stop.
            if stream is not None:
                tqdm.write(self.format(record), file=stream)
                stream.flush()


@contextmanager
def show_log(stream: TextIO | None = None, *, quiet: bool = False) -> Iterator[None]:
    """Write the package's messages to `stream`, stderr if None, during the block."""
    logger, handler = logging.getLogger(PACKAGE), _AboveTheBar(stream)
    level = logger.level
    logger.addHandler(handler)
    set_verbosity(quiet=quiet)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose which messages are shown: `quiet` hides those about samples, `verbose` adds details."""
    level = logging.INFO if quiet else logging.DEBUG if verbose else PER_SAMPLE
    logging.getLogger(PACKAGE).setLevel(level)


@contextmanager
def keep_log(path: Path) -> Iterator[None]:
    """Append the package's messages during the block to the file at `path`, and the error that ends it.

    A log that cannot be written is no error: the disk that refuses it will refuse the run's own files.
    """
    try:
        file = os.fdopen(open_to_append(path), "a", encoding="utf-8", errors="backslashreplace")
    except OSError:
        yield
        return
    logger = logging.getLogger(PACKAGE)
    handler = _InFile(file)
    handler.setFormatter(_CleanFormatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    except SynthiaBatchError as exc:
        handler.emit(logging.makeLogRecord({"msg": f"error: {exc}"}))
        raise
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # What a full disk refused is written again.
            file.close()


class _InFile(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the message."""


@contextmanager
def mute_log(name: str) -> Iterator[None]:
    """Drop the messages of the logger `name` up to INFO during the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
