"""Copies of inputs in the user's cache: normalized, downloaded or piped in.

A copy appears complete, by a rename, or not at all. One that was not used for 30 days is removed when
another is created.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from synthia_batch.core.cache import KeptDirectory, find_user_cache
from synthia_batch.core.digest import measure_once
from synthia_batch.core.errors import StorageFailed

KEPT_DAYS = 30
"""How long an unused copy is kept."""
FACTS_NAME = "facts.json"
"""Describes a normalized copy, beside it."""


def find_copies() -> Path:
    """Return the directory of all copies. It may not exist yet."""
    return find_user_cache() / "inputs"


def is_copy(path: Path) -> bool:
    """Return whether `path` is, or would be, a file of a copy."""
    return find_copies() in path.parents


def find_copy(key: str) -> Path | None:
    """Return the directory of the copy with that key, None if it is missing or incomplete."""
    path = find_copies() / key
    if _describe(path).find_damage() is not None:
        return None
    _mark_used(path)
    return path


def keep_copy(key: str, build: Callable[[Path], None]) -> Path:
    """Return the directory of the copy with that key, created by `build` unless it exists and is complete.

    `build` gets the path of a directory to create. Concurrent processes build the copy once.
    """
    path = find_copies() / key
    if _describe(path).find_damage() is not None:
        drop_unused()
    with report_disk():
        _describe(path).prepare(build)
    _mark_used(path)
    return path


def drop_unused(*, now: float | None = None) -> list[Path]:
    """Remove the copies that were not used for 30 days, and return their paths."""
    now = time.time() if now is None else now
    removed = []
    for path in sorted(find_copies().iterdir()) if find_copies().is_dir() else ():
        # A name with a leading dot is left over from a process that was killed.
        days = 1 if path.name.startswith(".") else KEPT_DAYS
        with suppress(OSError):
            if path.stat().st_mtime < now - days * 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


@contextmanager
def report_disk() -> Iterator[None]:
    """Raise StorageFailed for errors of the cache's disk in the block."""
    try:
        yield
    except OSError as exc:
        raise StorageFailed(
            f"{find_copies()}: cannot write a copy of the input: {exc.strerror or exc}; free space "
            "there, or set XDG_CACHE_HOME to another cache, then run the same command again"
        ) from exc


def _describe(path: Path) -> KeptDirectory:
    return KeptDirectory(path=path, what="the copy of an input", measure=measure_once)


def _mark_used(path: Path) -> None:
    with suppress(OSError):  # The cache may be read-only, or another user's.
        os.utime(path)
