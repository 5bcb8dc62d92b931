"""The interface of remote stores: look up a file, list files, read from any byte on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Broken(Exception):
    """A failed request that can be retried. `pause_seconds` is the pause that the server asks for."""

    def __init__(self, message: str, pause_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.pause_seconds = pause_seconds


class Changed(Exception):
    """The remote file changed during the download, which has to start again."""


class EndUnknown(Exception):
    """Raised after the last byte of an answer that has no length: it may have been cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file on another machine. `url` is for messages and holds no secrets; `key` may.

    `size`, in bytes, and `version` are None if the server does not report them.
    """

    url: str
    key: str
    size: int | None
    version: str | None


class RemoteStore(Protocol):
    """The files of one server or one bucket."""

    def look(self, key: str) -> RemoteFile | None:
        """Return the file of that key, None if there is none. Raises Broken, UsageError."""

    def list_keys(self, prefix: str) -> list[str]:
        """Return the keys of all files below `prefix`. Raises Broken, UsageError."""

    def read(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """Yield the bytes of `file` from `start` on. Raises Broken, Changed, EndUnknown, UsageError."""
