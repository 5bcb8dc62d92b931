"""Plain copies of inputs that cannot be read at random, kept in the user's cache by their content.

A copy appears whole, by a rename, or not at all. One that was not used for 30 days is removed when
another is made.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from synthia_batch.core.cache import KeptDirectory, find_user_cache
from synthia_batch.errors import StorageFailed

KEPT_DAYS = 30
"""How long a copy stays that nobody reads."""
FACTS_NAME = "facts.json"
"""What is known of a copy's content, beside it."""


def find_copies() -> Path:
    """Return the directory of all copies. It may not exist yet."""
    return find_user_cache() / "inputs"


def is_copy(path: Path) -> bool:
    """Say whether `path` is, or would be, a file of a copy."""
    return find_copies() in path.parents


def find_copy(key: str) -> Path | None:
    """Return the directory of the copy with that key, None where it is not there or not whole."""
    path = find_copies() / key
    if _describe(path).find_damage() is not None:
        return None
    _mark_used(path)
    return path


def keep_copy(key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of the copy with that key, made by `build` unless it is there and whole.

    `build` gets the path of a directory that is not there yet. Processes that call at once make it once.

    Raises:
        StorageFailed: The cache cannot be written, or is full.
    """
    path = find_copies() / key
    if _describe(path).find_damage() is not None:
        drop_unused()
    with report_disk():
        _describe(path).prepare(build)
    _mark_used(path)
    return path


def drop_unused(*, now: float | None = None) -> list[Path]:
    """Remove the copies that were not used for 30 days, and return where they were."""
    now = time.time() if now is None else now
    removed = []
    for path in sorted(find_copies().iterdir()) if find_copies().is_dir() else ():
        # What a process that was killed had begun, has a dot before its name.
        days = 1 if path.name.startswith(".") else KEPT_DAYS
        with suppress(OSError):
            if path.stat().st_mtime < now - days * 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


@contextmanager
def report_disk() -> Iterator[None]:
    """Turn what the disk under the cache refuses in the block into words."""
    try:
        yield
    except OSError as exc:
        raise StorageFailed(
            f"{find_copies()}: a plain copy of the input cannot be written: {exc.strerror or exc}; make room "
            "there, or name another cache with XDG_CACHE_HOME, then run the same command again"
        ) from exc


def _describe(path: Path) -> KeptDirectory:
    # By size alone: the content is digested for the job's identity in any case.
    return KeptDirectory(path=path, what="the copy of an input", reads_content=False)


def _mark_used(path: Path) -> None:
    with suppress(OSError):  # Another user's cache, or a read-only one.
        os.utime(path)
