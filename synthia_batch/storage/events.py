"""The history of a run for people and the report: `.synthia/events.jsonl`."""

import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from synthia_batch.core.events import Event, LoggedEvent
from synthia_batch.core.files import open_to_append
from synthia_batch.core.masking import mask_values
from synthia_batch.storage.atomic import storage_errors, write_all


class EventLog:
    """Appends one JSON line per event.

    Never synced: no decision depends on it, so power loss may take its last lines. A failed write still
    ends the run: a disk that refuses this line will refuse the journal's next one.
    """

    def __init__(self, path: Path, fd: int, clock: Callable[[], datetime]) -> None:
        self._path = path
        self._fd = fd
        self._clock = clock

    @classmethod
    def open(cls, path: Path, clock: Callable[[], datetime]) -> Self:
        """Open the log at `path`, or create it. `clock` returns the wall time, with its zone."""
        is_torn = _is_torn(path)
        with storage_errors("open", path):
            fd = open_to_append(path)
            if is_torn:
                write_all(fd, b"\n")  # keeps the next event out of the torn line
        return cls(path, fd, clock)

    def append(self, kind: str, **fields: Any) -> None:
        """Append an event of this kind with its fields, which must be JSON values."""
        time = self._clock().isoformat(timespec="milliseconds")
        event = {"time": time, "kind": kind, **mask_values(fields)}
        with storage_errors("append to", self._path):
            write_all(self._fd, json.dumps(event).encode() + b"\n")

    def write(self, event: Event) -> None:
        """Append `event` if it is one that the log keeps."""
        if isinstance(event, LoggedEvent):
            self.append(event.kind, **event.fields)

    def close(self) -> None:
        with storage_errors("close", self._path):
            os.close(self._fd)


class EventReader:
    """Reads a growing log: each event once, as soon as its line is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return the events since the last call; lines torn by a crash are skipped."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _decode(line)) is not None]


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events in order; lines torn by a crash are skipped. No file, no events."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):  # the latter: a parent in its path is a file
        return
    with file:
        for line in file:
            event = _decode(line)
            if event is not None:
                yield event


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _is_torn(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
    except OSError:  # no file, or an empty one
        return False
