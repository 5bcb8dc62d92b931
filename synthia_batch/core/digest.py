"""Digests of files and values, and a cache that avoids reading a large file twice."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from synthia_batch.core.cache import find_user_cache, replace_cached
from synthia_batch.core.errors import IntegrityError, UsageError

SETTLE_SECONDS = 2.0
"""A file modified this recently may change again without a new time stamp: clocks are coarse."""
Algorithm = Literal["blake3", "sha256"]
MAX_ENTRIES = 4096
"""Cached files; an entry takes about 200 bytes. The oldest are evicted first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """Metadata that changes with a file's content, unless the clock was set back."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def read_stamp(path: Path) -> FileStamp:
    """Return the stamp of the file at `path`. Raises OSError."""
    status = path.stat()
    return FileStamp(
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def is_touched(before: FileStamp, after: FileStamp) -> bool:
    """Return whether only the time of the last change of metadata differs.

    A new mode or link does that, and so does a write whose time of modification was set back: only the
    content shows which.
    """
    return before != after and replace(before, ctime_ns=after.ctime_ns) == after


class DigestCache:
    """Digests of files by real path and stamp, in a directory with one small file each.

    Safe for concurrent processes: entries are written atomically. An entry that cannot be read or
    written counts as missing.
    """

    def __init__(self, directory: Path, *, read_clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._read_clock = read_clock

    def find(self, path: Path, stamp: FileStamp, algorithm: Algorithm = "blake3") -> str | None:
        """Return the cached digest of `path` at `stamp`, or None."""
        if not self._is_settled(stamp):
            return None
        try:
            entry = json.loads(self._entry_path(path, algorithm).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.get("key") != _make_key(path, stamp):
            return None
        digest = entry.get("digest")
        return digest if _is_digest(digest) else None

    def remember(self, path: Path, stamp: FileStamp, digest: str, algorithm: Algorithm = "blake3") -> None:
        """Cache the digest of `path` at `stamp`, unless the file is too new to trust its time stamp."""
        if not self._is_settled(stamp):
            return
        entry = canonical_json({"key": _make_key(path, stamp), "digest": digest})
        with suppress(OSError):
            replace_cached(self._entry_path(path, algorithm), entry)
            self._drop_oldest()

    def _is_settled(self, stamp: FileStamp) -> bool:
        changed = max(stamp.mtime_ns, stamp.ctime_ns) / 1e9
        return self._read_clock() - changed > SETTLE_SECONDS

    def _entry_path(self, path: Path, algorithm: Algorithm) -> Path:
        name = blake3(os.fsencode(os.path.realpath(path))).hexdigest(length=16)
        return self._directory / (f"{name}.json" if algorithm == "blake3" else f"{name}.{algorithm}.json")

    def _drop_oldest(self) -> None:
        with os.scandir(self._directory) as entries:
            paths = [(entry.stat().st_mtime_ns, entry.path) for entry in entries]
        for _, path in sorted(paths)[: max(0, len(paths) - MAX_ENTRIES)]:
            Path(path).unlink(missing_ok=True)


def open_digest_cache() -> DigestCache:
    return DigestCache(find_user_cache() / "digests")


def digest_file(path: Path, cache: DigestCache | None = None, algorithm: Algorithm = "blake3") -> str:
    """Return the digest of a file's content, 64 hex digits, from `cache` if known.

    Raises:
        UsageError: The file cannot be read.
        IntegrityError: The file changed while it was read.
    """
    try:
        stamp = read_stamp(path)
        known = cache.find(path, stamp, algorithm) if cache else None
        if known is not None:
            return known
        digest = _HASHES[algorithm](path)
        unchanged = read_stamp(path) == stamp
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}; check path and permissions") from exc
    if not unchanged:
        raise IntegrityError(f"{path}: changed while it was being read; run again once it is complete")
    if cache:
        cache.remember(path, stamp, digest, algorithm)
    return digest


def _hash_blake3(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def _hash_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_HASHES: dict[Algorithm, Callable[[Path], str]] = {"blake3": _hash_blake3, "sha256": _hash_sha256}


def measure_once(path: Path) -> dict[str, Any]:
    """Return the size and digest of a file, which is read once for each stamp. For `KeptDirectory`."""
    size = path.stat().st_size  # First: a missing file is not an unreadable one.
    return {"bytes": size, "blake3": digest_file(path, open_digest_cache())}


def digest_json(value: Any) -> str:
    """Return the BLAKE3 digest of the canonical JSON of `value`, 64 hex digits."""
    return blake3(canonical_json(value)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical JSON of `value`: sorted keys, no spaces, unescaped UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def _make_key(path: Path, stamp: FileStamp) -> list[str | int]:
    # In hex: a path need not be UTF-8, and an entry must be valid JSON.
    real = os.fsencode(os.path.realpath(path)).hex()
    return [real, stamp.device, stamp.inode, stamp.size, stamp.mtime_ns, stamp.ctime_ns]


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
