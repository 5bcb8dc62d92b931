"""Comes between a run and the system: counts, records and spoils the calls that change its directory.

Everything in the package that decides about durability goes through these functions of `os`, so
that what is done to them here is done to the run. Used in a process of its own, see warm.py.
"""

import importlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "fdatasync", "rename", "unlink", "mkdir", "ftruncate")
_real = {name: getattr(os, name) for name in (*CALLS, "close")}


@dataclass(slots=True)
class Call:
    """One system call under the run directory. `number` counts them from 1."""

    number: int
    name: str
    args: tuple[Any, ...]
    path: str


class Observer:
    """What may be done about a call. `change` may alter its arguments."""

    def before(self, call: Call) -> None:
        """Called ahead of the call."""

    def change(self, call: Call) -> tuple[Any, ...]:
        """Return the arguments to make the call with."""
        return call.args

    def after(self, call: Call, result: Any) -> None:
        """Called once it succeeded."""


@dataclass
class Kill(Observer):
    """Ends this process with SIGKILL before, after or half-way through the call number `at`."""

    at: int
    when: str

    def before(self, call: Call) -> None:
        if call.number != self.at or self.when == "after":
            return
        if self.when == "half" and call.name == "write":
            fd, data = call.args
            _real["write"](fd, bytes(data)[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def after(self, call: Call, result: Any) -> None:
        if call.number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class List(Observer):
    """Notes every call in the file `log`, one line each."""

    log: str

    def before(self, call: Call) -> None:
        with Path(self.log).open("a") as log:
            log.write(f"{call.name} {call.path}\n")


@dataclass
class Fail(Observer):
    """Has the calls `name` on paths that hold `path` fail with `code`, from number `first` of them on.

    Notes each in the file `log`.
    """

    name: str
    code: int
    log: str
    path: str = ""
    first: int = 1
    last: int = 10**9
    _seen: int = 0

    def before(self, call: Call) -> None:
        if call.name != self.name or self.path not in call.path:
            return
        if call.name == "mkdir" and os.path.exists(call.path):
            return  # what is there is found to be there before a disk is asked for anything
        self._seen += 1
        if self.first <= self._seen <= self.last:
            with Path(self.log).open("a") as log:
                log.write(f"{call.name} {call.path}\n")
            raise OSError(self.code, os.strerror(self.code))


@dataclass
class Shorten(Observer):
    """Has every write of more than one byte take only some of them: `taken`, or all but -`taken`."""

    taken: int

    def change(self, call: Call) -> tuple[Any, ...]:
        if call.name != "write":
            return call.args
        fd, data = call.args
        return fd, bytes(data)[: max(1, self.taken if self.taken > 0 else len(data) + self.taken)]


@dataclass
class Record(Observer):
    """Writes down what was done to which file, as lines of JSON: see disk.py."""

    log: str
    root: str
    _open: dict[int, int] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        self._file = Path(self.log).open("w", buffering=1)  # noqa: SIM115 - open until the process ends
        # What an earlier attempt left is taken to be on the disk already.
        root = Path(self.root)
        for path in (root, *sorted(root.rglob("*"))) if root.exists() else ():
            if path.is_file():
                self._names[str(path)] = self._add(path.read_bytes().hex(), str(path))
            else:
                self._note("have_directory", path=str(path))

    def after(self, call: Call, result: Any) -> None:
        getattr(self, f"_note_{call.name}")(call, result)

    def _add(self, content: str, path: str) -> int:
        self._count += 1
        self._note("have", file=self._count, path=path, data=content)
        return self._count

    def _note(self, op: str, **fields: Any) -> None:
        self._file.write(json.dumps({"op": op, **fields}) + "\n")

    def _note_open(self, call: Call, fd: int) -> None:
        if call.path not in self._names:
            self._count += 1
            self._names[call.path] = self._count
            self._note("create", file=self._count, path=call.path)
        elif call.args[1] & os.O_TRUNC:
            self._note("truncate", file=self._names[call.path], size=0)
        self._open[fd] = self._names[call.path]

    def _note_write(self, call: Call, written: int) -> None:
        fd, data = call.args
        offset = os.lseek(fd, 0, os.SEEK_CUR) - written
        self._note("write", file=self._open[fd], offset=offset, data=bytes(data)[:written].hex())

    def _note_fsync(self, call: Call, result: None) -> None:
        if os.path.isdir(call.path):
            self._note("sync_directory", path=call.path)
        else:
            self._note("sync", file=self._open[call.args[0]])

    _note_fdatasync = _note_fsync

    def _note_ftruncate(self, call: Call, result: None) -> None:
        self._note("truncate", file=self._open[call.args[0]], size=call.args[1])

    def _note_rename(self, call: Call, result: None) -> None:
        target = _find_path(call.args[1])
        self._names[target] = self._names.pop(call.path)
        self._note("rename", path=call.path, target=target)

    def _note_unlink(self, call: Call, result: None) -> None:
        del self._names[call.path]
        self._note("unlink", path=call.path)

    def _note_mkdir(self, call: Call, result: None) -> None:
        self._note("mkdir", path=call.path)


OBSERVERS: Mapping[str, Callable[..., Observer]] = {
    "kill": Kill,
    "list": List,
    "fail": Fail,
    "shorten": Shorten,
    "record": Record,
}


def install(root: str, faults: Mapping[str, Any]) -> None:
    """Come between this process and the directory `root`, with the observers that `faults` name."""
    observers = [OBSERVERS[name](**options) for name, options in faults.items()]
    count = 0

    def wrap(name: str) -> Callable[..., Any]:
        real = _real[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            path = _find_path(args[0])
            is_ours = (path == root or path.startswith(root + "/")) and not kwargs
            # The root's own name is in the directory above it.
            is_ours = is_ours or (name == "fsync" and path == os.path.dirname(root))
            is_change = is_ours and (name != "open" or bool(args[1] & (os.O_CREAT | os.O_TRUNC)))
            if not is_change:
                return real(*args, **kwargs)
            count += 1
            made = Call(count, name, args, path)
            for observer in observers:
                observer.before(made)
                made.args = observer.change(made)
            result = real(*made.args)
            for observer in observers:
                observer.after(made, result)
            return result

        return call

    for name in CALLS:
        setattr(os, name, wrap(name))


def patch(values: Mapping[str, Any]) -> None:
    """Set constants of the package, by their dotted names."""
    for dotted, value in values.items():
        module, _, name = dotted.rpartition(".")
        setattr(importlib.import_module(module), name, value)


def _find_path(target: Any) -> str:
    """Return the absolute path that an argument, a path or a descriptor, stands for."""
    if isinstance(target, int):
        try:
            return os.readlink(f"/proc/self/fd/{target}")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(target))
