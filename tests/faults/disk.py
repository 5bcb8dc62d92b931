"""A disk that keeps what was synced and any part of what was not.

Stricter than any file system: every unsynced write, and every unsynced change of a directory, may
be there or not, whatever its neighbours do; a write may be there in part, with zeros in the place
of the rest. What was done comes from `syscalls.Record`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Step = dict[str, Any]
Choose = Callable[[int], int]
"""Returns a number from 0 up to, not including, the one it gets: what became of an unsynced change."""
LOST, KEPT, TORN = 0, 1, 2


@dataclass(slots=True)
class _File:
    synced: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    unsynced: list[Step] = field(default_factory=list)


@dataclass(slots=True)
class _Directory:
    """Names to file numbers, or to the path of a directory: `synced` ones, and changes not yet."""

    synced: dict[str, int | str] = field(default_factory=dict)
    unsynced: list[tuple[str, int | str | None, str | None]] = field(default_factory=list)


class Disk:
    """Replays the steps of a record up to a moment, and says what power loss may leave of them."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._files: dict[int, _File] = {}
        self._directories: dict[str, _Directory] = {}
        self._names: dict[str, int | str] = {}
        self._directories[str(Path(root).parent)] = _Directory()

    def apply(self, step: Step) -> None:
        getattr(self, f"_{step['op']}")(step)

    def read_synced_journal(self, file: int) -> bytes | None:
        """The bytes of a journal that are on the disk for certain; None if `file` is none, or has no name."""
        journals = {
            what for path, what in self._names.items() if path.endswith(".wal") and "/journal/" in path
        }
        return self._files[file].synced if file in journals else None

    def lose_power(self, choose: Choose, target: Path) -> None:
        """Write to the directory `target` what is left of the root."""
        parent = self._settle(self._directories[str(Path(self._root).parent)], choose)
        if Path(self._root).name in parent:
            self._write_directory(self._root, choose, target)

    def _write_directory(self, path: str, choose: Choose, target: Path) -> None:
        target.mkdir()
        for name, what in sorted(self._settle(self._directories[path], choose).items()):
            if isinstance(what, str):
                self._write_directory(what, choose, target / name)
            else:
                (target / name).write_bytes(_settle_file(self._files[what], choose))

    def _settle(self, directory: _Directory, choose: Choose) -> dict[str, int | str]:
        names = dict(directory.synced)
        for name, what, source in directory.unsynced:
            if choose(2) == LOST:
                continue
            if source is not None:
                names.pop(source, None)
            if what is None:
                names.pop(name, None)
            else:
                names[name] = what
        return names

    def _have(self, step: Step) -> None:
        content = bytes.fromhex(step["data"])
        self._files[step["file"]] = _File(content, bytearray(content))
        self._name(step["path"], step["file"])
        self._sync_directory({"path": str(Path(step["path"]).parent)})

    def _have_directory(self, step: Step) -> None:
        self._mkdir(step)
        self._sync_directory({"path": str(Path(step["path"]).parent)})

    def _create(self, step: Step) -> None:
        self._files[step["file"]] = _File()
        self._name(step["path"], step["file"])

    def _mkdir(self, step: Step) -> None:
        self._directories.setdefault(step["path"], _Directory())
        self._name(step["path"], step["path"])

    def _name(self, path: str, what: int | str | None, source: str | None = None) -> None:
        if what is None:
            del self._names[path]
        else:
            self._names[path] = what
        directory = self._directories[str(Path(path).parent)]
        directory.unsynced.append((Path(path).name, what, source and Path(source).name))

    def _write(self, step: Step) -> None:
        file = self._files[step["file"]]
        data = bytes.fromhex(step["data"])
        _put(file.content, step["offset"], data)
        file.unsynced.append({"offset": step["offset"], "data": data})

    def _truncate(self, step: Step) -> None:
        file = self._files[step["file"]]
        del file.content[step["size"] :]
        file.unsynced.append({"size": step["size"]})

    def _sync(self, step: Step) -> None:
        file = self._files[step["file"]]
        file.synced = bytes(file.content)
        file.unsynced.clear()

    def _sync_directory(self, step: Step) -> None:
        directory = self._directories[step["path"]]
        directory.synced = self._settle(directory, lambda count: KEPT)
        directory.unsynced.clear()

    def _rename(self, step: Step) -> None:
        self._name(step["target"], self._names.pop(step["path"]), step["path"])

    def _unlink(self, step: Step) -> None:
        self._name(step["path"], None)


def read_steps(log: Path) -> list[Step]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def replay(root: Path, steps: Sequence[Step]) -> Disk:
    disk = Disk(str(root))
    for step in steps:
        disk.apply(step)
    return disk


def _settle_file(file: _File, choose: Choose) -> bytes:
    content = bytearray(file.synced)
    for step in file.unsynced:
        fate = choose(3)
        if fate == LOST:
            continue
        if "size" in step:
            del content[step["size"] :]
        elif fate == KEPT:
            _put(content, step["offset"], step["data"])
        else:
            data = bytearray(step["data"])
            stop = choose(len(data) + 1)
            start = stop - choose(stop + 1)
            data[start:stop] = bytes(stop - start)
            # A hole in the middle, or the end that never came: the size may say so or not.
            _put(content, step["offset"], data if choose(2) else data[:stop])
    return bytes(content)


def _put(content: bytearray, offset: int, data: bytes | bytearray) -> None:
    if len(content) < offset:
        content += bytes(offset - len(content))
    content[offset : offset + len(data)] = data
