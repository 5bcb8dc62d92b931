"""The one place that opens files for writing: it never follows a link that somebody has planted.

A name that is known beforehand, such as that of a temporary file or a log, may be a link to a file of the
user's by the time that it is written. Others may plant one wherever they may write.
"""

import os
from pathlib import Path

MODE = 0o666
"""Permissions of new files, limited by the user's umask."""


def create_file(path: Path | str, mode: int = MODE) -> int:
    """Return a descriptor of a new, empty file at `path`; whatever had that name, a link too, is removed.

    Raises:
        OSError: It cannot be created.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, mode)
    except FileExistsError:
        os.unlink(path)
    return os.open(path, flags, mode)


def open_to_append(path: Path | str, mode: int = MODE) -> int:
    """Return a descriptor that appends to the file at `path`, which is created if it is missing.

    Raises:
        OSError: It cannot be opened; with ELOOP, `path` is a symbolic link.
    """
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def make_private_directories(path: Path) -> None:
    """Create `path` and its missing parents for this user alone; existing ones stay as they are."""
    if not path.is_dir():
        make_private_directories(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
