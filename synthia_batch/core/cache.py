"""The user's cache: single files, and directories that are built once and then only checked.

A directory appears by a rename, complete. Its `digests.json` lists the size and BLAKE3 digest of
every other file.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from filelock import FileLock

from synthia_batch.core.files import make_private_directories

DIGESTS_NAME = "digests.json"

_log = logging.getLogger(__name__)


def measure(path: Path) -> dict[str, Any]:
    """Return the size and digest of a file, hashed on all cores."""
    size = path.stat().st_size  # first: unlike blake3's, its error names the file
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return {"bytes": size, "blake3": hasher.hexdigest()}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDirectory:
    """A cached directory, and how to check it.

    `what` is its name in messages. `refuse` gets the digests and returns a complaint or None. `measure`
    returns the size and digest of a file: one that remembers them spares reading 140 GB at each use.
    """

    path: Path
    what: str
    refuse: Callable[[Mapping[str, Any]], str | None] = lambda digests: None
    measure: Callable[[Path], Mapping[str, Any]] = measure

    def prepare(self, build: Callable[[Path], None]) -> Path:
        """Return the directory; if it is missing or damaged, `build` first creates it at the path it gets.

        Replacing a damaged directory logs a warning. Concurrent callers build it only once.
        """
        # The lock needs a writable cache, so it waits until there is something to write.
        if self.find_damage() is not None:
            make_private_directories(self.path.parent)
            with FileLock(self.path.with_name(f"{self.path.name}.lock")):
                self._replace_unless_intact(build)
        return self.path

    def find_damage(self) -> str | None:
        """Return a description of the damage, None if the directory is intact."""
        try:
            digests = json.loads((self.path / DIGESTS_NAME).read_text(encoding="utf-8"))
            complaint = self.refuse(digests)
            if complaint is not None:
                return complaint
            for name, expected in digests.items():
                file = self.path / name
                if file.stat().st_size != expected["bytes"] or self.measure(file) != expected:
                    return f"{name} has changed"
        except (FileNotFoundError, NotADirectoryError) as exc:
            return f"{exc.filename} is missing"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{DIGESTS_NAME} cannot be read"
        return None

    def _replace_unless_intact(self, build: Callable[[Path], None]) -> None:
        """Build the directory unless another process did so while this one waited for the lock."""
        path = self.path
        if path.exists():
            damage = self.find_damage()
            if damage is None:
                return
            _log.warning("%s in %s is damaged (%s): rebuilding it", self.what, path, damage)
        for left_over in path.parent.glob(f".{path.name}-*"):  # from crashed processes: we hold the lock
            shutil.rmtree(left_over, ignore_errors=True)
        workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            build(workspace / "new")
            (workspace / "new").chmod(0o700)  # It may hold prompts.
            _write_digests(workspace / "new")
            if path.exists():
                path.rename(workspace / "damaged")
            (workspace / "new").rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush the file or directory `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_digests(directory: Path) -> None:
    """Write the digests of all files of `directory` and flush everything to disk."""
    digests = {file.name: measure(file) for file in sorted(directory.iterdir())}
    (directory / DIGESTS_NAME).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    for file in directory.iterdir():
        sync(file)
    sync(directory)


def find_user_cache() -> Path:
    """Return synthia-batch's directory under XDG_CACHE_HOME, or under ~/.cache. It may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says to ignore relative paths.
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "synthia-batch"


def replace_cached(path: Path, content: bytes, *, is_durable: bool = False) -> None:
    """Write `content` to `path` atomically. After a power loss it may be missing unless `is_durable`.

    Raises:
        OSError: It cannot be written.
    """
    make_private_directories(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    if is_durable:
        sync(path.parent)
