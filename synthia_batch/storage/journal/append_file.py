"""The append-only file under the journal and the ledger of parts."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from synthia_batch.core.errors import StorageFailed
from synthia_batch.core.files import open_to_append
from synthia_batch.storage.atomic import storage_errors, sync_directory, sync_file_data, write_all
from synthia_batch.storage.journal.frames import encode_frame

UNSYNCED = "unsynced"
"""Key of the frame after a failed sync. Its value is the byte from which the file may not be on disk."""


class AppendFile:
    """An open file that grows by whole appends, until the first failure.

    `size_bytes` is its length, `synced_bytes` the length that is certainly on disk. After a failed append
    or sync it accepts no more: data after half a frame would look like damage, and an fsync after a failed
    one proves nothing.
    """

    def __init__(self, path: Path, fd: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.synced_bytes = 0
        self._fd: int | None = fd
        self._is_broken = False

    @classmethod
    def open(cls, path: Path, *, kept_bytes: int) -> Self:
        """Open `path` for appending after its first `kept_bytes`, and cut off the rest.

        The cut is durable only after the next `sync`: call it before anyone relies on what replaces the
        removed bytes.

        Raises:
            StorageFailed: The file cannot be opened, created or truncated.
        """
        with storage_errors("open", path):
            fd = open_to_append(path)
            try:
                if os.fstat(fd).st_size > kept_bytes:
                    os.ftruncate(fd, kept_bytes)
            except BaseException:
                os.close(fd)
                raise
        return cls(path, fd, kept_bytes)

    def append(self, data: bytes) -> None:
        """Append `data`. It then survives a crash of this process, but not yet of the machine."""
        with storage_errors("append to", self.path):
            fd = self._usable_fd()
            # Broken until the write returns: an interrupt, too, may leave half a frame.
            self._is_broken = True
            write_all(fd, data)
            self._is_broken = False
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Return once all appended data is on disk.

        Raises:
            StorageFailed: It may not be; a last frame records this for the next process, if possible.
        """
        fd = self._usable_fd()
        self._is_broken = True
        try:
            sync_file_data(fd, self.path)
        except StorageFailed:
            # The next process must not trust what it reads: the kernel may have marked these pages clean.
            # One try, not synced: the frame needs to last only as long as those pages. On a line of its own:
            # the newline before it may be among the bytes that are lost.
            with suppress(OSError):
                write_all(fd, b"\n" + encode_frame({UNSYNCED: self.synced_bytes}))
            raise
        self._is_broken = False
        self.synced_bytes = self.size_bytes

    def sync_with_name(self) -> None:
        """Like sync, for a file that may be new: its name is on disk as well."""
        self.sync()
        # fdatasync covers the bytes of a file, not its directory entry.
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file without syncing it. Safe to call twice."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with storage_errors("close", self.path):
                os.close(fd)

    def _usable_fd(self) -> int:
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        if self._is_broken:
            raise StorageFailed(
                f"{self.path} accepts no more data: an earlier write or fsync of it failed\n"
                "  fix the cause, then run the same command again"
            )
        return self._fd
