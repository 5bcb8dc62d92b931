"""Directories of the user's cache that are made once, by a conversion, and then checked.

A directory appears whole, by a rename, and holds `digests.json`, the size and BLAKE3 digest of
every other file: its existence says that the directory is complete.

Where this user's caches are: the embedded model, converted tokenizers, digests, tuned settings.
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

DIGESTS_NAME = "digests.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDirectory:
    """Where a model is kept, and what it must be.

    `what` names it to a person. `refuse` gets the digests and returns what is wrong with them, or
    None. Without `reads_content` only sizes are checked: 140 GB take minutes to read.
    """

    path: Path
    what: str
    refuse: Callable[[Mapping[str, Any]], str | None] = lambda digests: None
    reads_content: bool = True

    def prepare(self, build: Callable[[Path], None]) -> Path:
        """Return the directory, made by `build` (which gets a path to make it at) unless it is whole.

        A damaged directory is replaced, with a warning. Processes that call at once make it once.

        Raises:
            OSError: The cache cannot be written.
        """
        # The lock needs a writable cache, so it waits until there is something to write.
        if self.find_damage() is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f"{self.path.name}.lock")):
                self._replace_unless_whole(build)
        return self.path

    def find_damage(self) -> str | None:
        """Return what is wrong with the directory, or None if it is whole."""
        try:
            digests = json.loads((self.path / DIGESTS_NAME).read_text(encoding="utf-8"))
            complaint = self.refuse(digests)
            if complaint is not None:
                return complaint
            for name, expected in digests.items():
                if not self._is_as(self.path / name, expected):
                    return f"{name} has changed"
        except (FileNotFoundError, NotADirectoryError) as exc:
            return f"{exc.filename} is missing"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{DIGESTS_NAME} cannot be read"
        return None

    def _is_as(self, file: Path, expected: Mapping[str, Any]) -> bool:
        if self.reads_content:
            return measure(file) == expected
        return bool(file.stat().st_size == expected["bytes"])

    def _replace_unless_whole(self, build: Callable[[Path], None]) -> None:
        """Make the model, unless another process did so while this one waited."""
        path = self.path
        if path.exists():
            damage = self.find_damage()
            if damage is None:
                return
            _log.warning("%s in %s is damaged (%s): making it again", self.what, path, damage)
        for left_over in path.parent.glob(f".{path.name}-*"):  # of processes that died: the lock is ours
            shutil.rmtree(left_over, ignore_errors=True)
        workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            build(workspace / "new")
            _write_digests(workspace / "new")
            if path.exists():
                path.rename(workspace / "damaged")
            (workspace / "new").rename(path)
            sync(path.parent)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


def measure(path: Path) -> dict[str, Any]:
    """Return the size and digest of a file, read by all cores."""
    size = path.stat().st_size  # first: its error names the file, that of blake3 does not
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return {"bytes": size, "blake3": hasher.hexdigest()}


def sync(path: Path) -> None:
    """Have what was written to the file or directory `path` on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_digests(directory: Path) -> None:
    """Add the digests of all files of `directory`, safe on disk."""
    digests = {file.name: measure(file) for file in sorted(directory.iterdir())}
    (directory / DIGESTS_NAME).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    for file in directory.iterdir():
        sync(file)
    sync(directory)


def find_user_cache() -> Path:
    """Return synthia-batch's directory under XDG_CACHE_HOME, or under ~/.cache. It may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "synthia-batch"


def replace_cached(path: Path, content: bytes) -> None:
    """Put `content` at `path`, whole, in place of what was there. Power loss may take it, as it may a cache.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
