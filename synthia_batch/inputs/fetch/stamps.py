"""Stamps of input files: what is made of a file holds only for the stamp that it had before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from synthia_batch.core.digest import FileStamp, read_stamp
from synthia_batch.core.errors import InputRefused, UsageError


def read_stamps(paths: Sequence[Path], shown: Path | str) -> dict[Path, FileStamp]:
    """Return the stamps of `paths`, files of the input `shown`. Raises UsageError."""
    try:
        return {path: read_stamp(path) for path in paths}
    except OSError as exc:
        raise UsageError(f"{shown}: cannot be read: {exc.strerror}") from exc


def check_unchanged(stamps: Mapping[Path, FileStamp], shown: Path | str) -> None:
    """Raise InputRefused unless each file still has its stamp."""
    if read_stamps(list(stamps), shown) != stamps:
        raise refuse_changed(shown)


def refuse_changed(shown: Path | str) -> InputRefused:
    """Return the error for a file that changed between two looks at it."""
    return InputRefused([f"{shown}: changed while it was read; wait until it is complete"])
