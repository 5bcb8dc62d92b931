"""Rows that are piped in, copied to the user's cache so that the run can be resumed."""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.core.files import make_private_directories
from synthia_batch.inputs.fetch.cache import find_copies, keep_copy, report_disk
from synthia_batch.inputs.fetch.decompress import CHUNK_BYTES
from synthia_batch.inputs.fetch.sniff import sniff_file

_log = logging.getLogger(__name__)

STDIN = "-"
"""The input path of a job that reads stdin."""
STDIN_NAME = "stdin"


def keep_stdin() -> Path:
    """Return the path of a copy of stdin's whole content; equal content has one copy.

    Raises:
        UsageError: stdin is a terminal.
        InputRefused: It is empty.
        StorageFailed: The copy cannot be written.
    """
    source = sys.stdin.buffer if sys.stdin is not None else None
    if source is None or source.isatty():
        raise UsageError("-: nothing is piped in; write `... | synthia-batch run -`, or name a file")
    with report_disk():
        make_private_directories(find_copies())
        descriptor, name = tempfile.mkstemp(prefix=".stdin-", dir=find_copies())
    piped = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target, report_disk():
            digest = _copy(source, target)
        if not piped.stat().st_size:
            raise InputRefused([f"{STDIN_NAME}: the piped input is empty"])
        encoding = sniff_file(piped, STDIN_NAME, guess=True)
        # Later commands determine the format by this name.
        kept_name = STDIN_NAME + encoding.kind.suffixes[0]
        if encoding.compression is not None:
            kept_name += encoding.compression.suffixes[0]
        directory = keep_copy(f"stdin-{digest[:32]}", lambda target: _move(piped, target, kept_name))
    finally:
        piped.unlink(missing_ok=True)
    path = directory / kept_name
    _log.info(f"stdin: {path.stat().st_size:,} bytes, kept as {path} for resume and retry")
    return path


def refuse_lost(path: Path) -> UsageError:
    """Return the error for a job whose copy of stdin is gone or damaged."""
    state = "damaged" if path.exists() else "missing"
    return UsageError(
        f"{path}: the copy of the piped input is {state}; pipe the same bytes in again, with the run's "
        "directory: `... | synthia-batch run - -o DIR`"
    )


def _copy(source: BinaryIO, target: BinaryIO) -> str:
    hasher = blake3()
    while content := source.read(CHUNK_BYTES):
        hasher.update(content)
        target.write(content)
    return hasher.hexdigest()


def _move(piped: Path, target: Path, name: str) -> None:
    target.mkdir()
    shutil.move(piped, target / name)
