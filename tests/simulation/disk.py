"""The disk of a simulated machine: real files in memory, and a model of which bytes are on the platter.

Every call of the package that changes its directory goes through functions of `os` (see faults/syscalls.py);
here they are counted, fail on demand, and are written down for tests/faults/disk.Disk, which says what power
loss leaves of them.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from disk import KEPT, LOST, Disk, Step, _File, _put

from simulation.faults import Killed

CALLS = ("open", "write", "fsync", "fdatasync", "rename", "unlink", "mkdir", "rmdir", "ftruncate", "close")
REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in CALLS}


class _Model(Disk):
    """The model of the disk. Its steps hold bytes as they are.

    `_doomed` has the byte ranges of files that a failed sync left in memory alone, marked as written:
    no later sync writes them.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._doomed: dict[int, list[tuple[int, int]]] = {}

    def _sync(self, step: Step) -> None:
        super()._sync(step)
        entry = self._files[step["file"]]
        synced = bytearray(entry.synced)
        for start, stop in self._doomed.get(step["file"], ()):
            synced[start:stop] = bytes(len(synced[start:stop]))
        entry.synced = bytes(synced)

    def write(self, file: int, offset: int, data: bytes) -> None:
        entry = self._files[file]
        if file in self._doomed:
            ranges = self._doomed[file]
            self._doomed[file] = [r for r in ranges if r[1] <= offset or r[0] >= offset + len(data)]
        _put(entry.content, offset, data)
        entry.unsynced.append({"offset": offset, "data": data})

    def have(self, file: int, path: str, content: bytes) -> None:
        self._files[file] = _File(content, bytearray(content))
        self._name(path, file)
        self._sync_directory({"path": str(Path(path).parent)})

    def _name(self, path: str, what: int | str | None, source: str | None = None) -> None:
        # As the model's, without building paths.
        if what is None:
            del self._names[path]
        else:
            self._names[path] = what
        parent, name = os.path.split(path)
        self._directories[parent].unsynced.append((name, what, source and os.path.basename(source)))

    def remove_directory(self, path: str) -> None:
        # Its content stays known: power loss may undo the removal.
        self._name(path, None)

    def file_at(self, path: str) -> int | None:
        found = self._names.get(path)
        return found if isinstance(found, int) else None

    def list_journals(self) -> list[tuple[int, _File]]:
        """Return the journals with the numbers of their files."""
        found = [what for path, what in self._names.items() if path.endswith(".wal") and "/journal/" in path]
        return [(what, self._files[what]) for what in found if isinstance(what, int)]

    def is_being_renamed(self, file: int) -> bool:
        """Whether `file` has its name by a rename that power loss may undo."""
        path = next(path for path, what in self._names.items() if what == file)
        parent, name = os.path.split(path)
        return any(source and changed == name for changed, _, source in self._directories[parent].unsynced)

    def lose_writes(self, file: int, draw: Random) -> bytes:
        """Have a sync of `file` fail; return what it holds from now on.

        Each unsynced write is lost in part at once, or stays in memory and is lost with the power.
        """
        entry = self._files[file]
        doomed = self._doomed.setdefault(file, [])
        for step in entry.unsynced:
            if "data" not in step:
                continue
            start = step["offset"] + draw.randint(0, len(step["data"]))
            stop = step["offset"] + len(step["data"])
            if draw.random() < 0.5:
                _put(entry.content, start, bytes(stop - start))
            else:
                doomed.append((start, stop))
        entry.unsynced = []
        return bytes(entry.content)


@dataclass
class DiskFault:
    """What the next attempt meets: at call number `at` (from 1) `ending` comes. See schedule.Attempt."""

    ending: str = "none"
    at: int = 0
    half: float = 0.0
    hooks: dict[int, Callable[[], None]] = field(default_factory=dict)


class SimulatedDisk:
    """The files below `root`. `on_journal_removed` gets the content of a journal that is removed."""

    def __init__(self, root: Path, draw: Random) -> None:
        self.root = root
        self.on_journal_removed: Callable[[bytes], None] = lambda content: None
        self._prefix = str(root)
        self._draw = draw
        self._model = _Model(self._prefix)
        self._files = 0
        self._fds: dict[int, str] = {}
        self.distrusted: set[int] = set()
        # What a later sync of these files seemed to keep.
        self._believed: dict[int, bytes] = {}
        self.begin(DiskFault())

    def begin(self, fault: DiskFault) -> None:
        """Begin an attempt that meets `fault`."""
        self.fault = fault
        self.calls = 0
        self.is_dead = False
        self.has_owner = False
        self._has_failed = False

    def end(self) -> None:
        """Close what the process left open, as the kernel does."""
        for fd, path in self._fds.items():
            if path.endswith("/lock"):
                # The object that holds it closes it, whenever it is collected.
                fcntl.flock(fd, fcntl.LOCK_UN)
            else:
                REAL["close"](fd)
        self._fds.clear()

    def lose_power(self) -> None:
        """Leave what was synced, and any part of what was not."""
        shutil.rmtree(self.root, ignore_errors=True)
        self._model.lose_power(self._choose_fate(), self.root)
        self._model = _Model(self._prefix)
        self.distrusted.clear()
        self._believed.clear()
        if self.root.exists():
            for path in (self.root, *sorted(self.root.rglob("*"))):
                if path.is_dir():
                    self._model.apply({"op": "have_directory", "path": str(path)})
                else:
                    self._files += 1
                    self._model.have(self._files, str(path), path.read_bytes())

    def _choose_fate(self) -> Callable[[int], int]:
        style = self._draw.randrange(4)
        if style < 2:
            return lambda count: (LOST, KEPT)[style]
        return self._draw.randrange

    def list_journals(self, *, synced: bool) -> list[bytes]:
        """Return the contents of the journals: what is synced, or all that the process wrote."""
        return [
            self._choose_content(number, file, synced=synced)
            for number, file in self._model.list_journals()
            if not synced or not self._model.is_being_renamed(number)
        ]

    def _choose_content(self, number: int, file: _File, *, synced: bool) -> bytes:
        if number in self._believed:
            return self._believed[number]
        return file.synced if synced or number in self.distrusted else bytes(file.content)

    def list_unsynced(self) -> set[tuple[int, int]]:
        """Return the journals' oldest unsynced writes, each as its file and its offset there."""
        return {
            (number, file.unsynced[0].get("offset", 0))
            for number, file in self._model.list_journals()
            if file.unsynced and number not in self.distrusted
        }

    def forget(self) -> None:
        """Be an empty disk: that of another machine."""
        shutil.rmtree(self.root, ignore_errors=True)
        self._model = _Model(self._prefix)
        self.distrusted.clear()
        self._believed.clear()

    def make_request(self, apply: Callable[[], Any]) -> Any:
        """Send a request to a store: at this call, too, the process may end, before or after it arrives."""
        if self.is_dead:
            raise Killed
        self.calls += 1
        is_last = self.fault.ending in ("kill", "power loss") and self.calls >= self.fault.at > 0
        result = apply() if not is_last or self.fault.half > 0.5 else None
        if is_last:
            self.is_dead = True
            raise Killed
        return result

    def call(self, name: str, args: tuple[Any, ...]) -> Any:
        """Make the call `name`, or whatever comes of it here."""
        if name == "close":
            self._fds.pop(args[0], None)
            return REAL["close"](*args)
        path = self._find_path(args[0])
        if path is None:
            return REAL[name](*args)
        is_change = name != "open" or bool(args[1] & (os.O_CREAT | os.O_TRUNC))
        if is_change:
            self._meet_fault(name, path, args)
        existed = name == "open" and os.path.exists(path)
        result = REAL[name](*args)
        if name == "open":
            self._fds[result] = path
        if is_change:
            getattr(self, f"_note_{name}")(path, args, result, existed)
        return result

    def _find_path(self, target: Any) -> str | None:
        if isinstance(target, int):
            return self._fds.get(target)
        path = os.fspath(target)
        is_ours = isinstance(path, str) and path.startswith(self._prefix)
        # The root's own name is in the directory above it.
        return path if is_ours or path == os.path.dirname(self._prefix) else None

    def _meet_fault(self, name: str, path: str, args: tuple[Any, ...]) -> None:
        if self.is_dead:
            raise Killed
        self.calls += 1
        hook = self.fault.hooks.pop(self.calls, None)
        if hook is not None:
            hook()
        if self.calls < self.fault.at or self.fault.ending in ("none", "drain", "interrupt"):
            return
        match self.fault.ending:
            case "full disk" if name in ("write", "mkdir") or (name == "open" and not os.path.exists(path)):
                if name == "mkdir" and os.path.exists(path):
                    return
                if name == "write" and not self._has_failed:
                    self._write_part(path, args)
                self._has_failed = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case "failed sync" if name in ("fsync", "fdatasync") and not self._has_failed:
                if path in self._fds.values() and not os.path.isdir(path):
                    self._has_failed = True
                    self._fail_sync(path, args[0])
            case "kill" | "power loss":
                if name == "write":
                    self._write_part(path, args)
                self.is_dead = True
                raise Killed

    def _write_part(self, path: str, args: tuple[Any, ...]) -> None:
        fd, data = args
        part = bytes(data)[: int(len(data) * self.fault.half)]
        if part:
            self._note_write(path, (fd, part), REAL["write"](fd, part), True)

    def _fail_sync(self, path: str, fd: int) -> None:
        file = self._model.file_at(path)
        if file is not None:
            self.distrusted.add(file)
            content = self._model.lose_writes(file, self._draw)
            with open(path, "r+b") as real:
                real.write(content)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _note_open(self, path: str, args: tuple[Any, ...], fd: int, existed: bool) -> None:
        file = self._model.file_at(path)
        if not existed or file is None:
            self._files += 1
            self._apply("create", file=self._files, path=path)
        elif args[1] & os.O_TRUNC:
            self._apply("truncate", file=file, size=0)

    def _note_write(self, path: str, args: tuple[Any, ...], written: int, existed: bool) -> None:
        fd, data = args
        offset = os.lseek(fd, 0, os.SEEK_CUR) - written
        file = self._model.file_at(path)
        if file is not None:
            self._model.write(file, offset, bytes(data)[:written])

    def _note_fsync(self, path: str, args: tuple[Any, ...], result: None, existed: bool) -> None:
        file = self._model.file_at(path)
        if file is not None:
            self._apply("sync", file=file)
            if file in self.distrusted:
                self._believed[file] = bytes(self._model._files[file].content)
        elif os.path.isdir(path):
            self._apply("sync_directory", path=path)

    _note_fdatasync = _note_fsync

    def _note_ftruncate(self, path: str, args: tuple[Any, ...], result: None, existed: bool) -> None:
        file = self._model.file_at(path)
        if file is not None:
            self._apply("truncate", file=file, size=args[1])

    def _note_rename(self, path: str, args: tuple[Any, ...], result: None, existed: bool) -> None:
        self.has_owner |= os.path.basename(args[1]) == "owner.json"
        self._apply("rename", path=path, target=os.fspath(args[1]))

    def _note_unlink(self, path: str, args: tuple[Any, ...], result: None, existed: bool) -> None:
        file = self._model.file_at(path)
        if file is not None and "/journal/" in path and file not in self.distrusted:
            self.on_journal_removed(bytes(self._model._files[file].content))
        if os.path.basename(path) == "lock":  # The run has not begun: only empty directories go after it.
            self.has_owner = False
        self._apply("unlink", path=path)

    def _note_mkdir(self, path: str, args: tuple[Any, ...], result: None, existed: bool) -> None:
        self._apply("mkdir", path=path)

    def _note_rmdir(self, path: str, args: tuple[Any, ...], result: None, existed: bool) -> None:
        self._model.remove_directory(path)

    def _apply(self, op: str, **fields: Any) -> None:
        step: Step = {"op": op, **fields}
        self._model.apply(step)


_current: list[SimulatedDisk | None] = [None]


def use_disk(disk: SimulatedDisk | None) -> None:
    """Have the calls of this process go through `disk`, or through none."""
    _current[0] = disk


def install() -> None:
    """Come between this process and the system, once."""

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            disk = _current[0]
            return real(*args, **kwargs) if disk is None or kwargs else disk.call(name, args)

        return call

    for name, real in REAL.items():
        setattr(os, name, wrap(name, real))
