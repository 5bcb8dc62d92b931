"""What a place on another machine must be able to do: look, list, and read on from any byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Broken(Exception):
    """A request that may be made again. `pause_seconds` is how long the server asks to wait."""

    def __init__(self, message: str, pause_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds


class Changed(Exception):
    """What is there is not what was begun with: it has to be fetched from its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file on another machine. `url` is shown: it has no secrets. `size` in bytes and `version` as far
    as the server tells them.
    """

    url: str
    key: str
    size: int | None
    version: str | None


class RemoteStore(Protocol):
    """Where files are, on one server or in one bucket."""

    def look(self, key: str) -> RemoteFile | None:
        """Return the file of that key, None where there is none. Raises Broken, UsageError."""

    def list_keys(self, prefix: str) -> list[str]:
        """Return the keys of all files below `prefix`. Raises Broken, UsageError."""

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Yield the bytes of `file` from `start` on. Raises Broken, Changed, UsageError."""
