"""A file that only grows: what the journal and the ledger of parts are written through."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Self

from synthia_batch.errors import StorageFailed
from synthia_batch.storage.atomic import storage_errors, sync_directory, sync_file_data, write_all
from synthia_batch.storage.journal.frames import encode_frame

DOUBT = "unsynced"
"""The key of the frame that follows a failed sync: from which byte on the file may not be on the disk."""


class AppendFile:
    """An open file that grows by whole appends, until the first failure.

    `size_bytes` is its length, `synced_bytes` how much of it is on the disk for certain. After a
    failed append or sync it takes nothing more: what follows half a frame could not be told from
    damage, and an fsync after a failed one proves nothing.
    """

    def __init__(self, path: Path, fd: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.synced_bytes = 0
        self._fd: int | None = fd
        self._is_broken = False

    @classmethod
    def open(cls, path: Path, *, kept_bytes: int) -> Self:
        """Open `path` for appending after its first `kept_bytes`, and cut off what lies beyond.

        The cut is on the disk only with the next `sync`: call it before what the cut made room for
        matters to anyone.

        Raises:
            StorageFailed: The file cannot be opened, made or cut.
        """
        with storage_errors("open", path):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.fstat(fd).st_size > kept_bytes:
                    os.ftruncate(fd, kept_bytes)
            except BaseException:
                os.close(fd)
                raise
        return cls(path, fd, kept_bytes)

    def append(self, data: bytes) -> None:
        """Add `data` at the end. It then survives the death of this process, not yet that of the machine.

        Raises:
            StorageFailed: The write failed. What it wrote is left as it is: whole frames count, and
                a torn last one is what every reader drops anyway; to cut it off here would only be
                one more call that can fail on the same disk.
        """
        with storage_errors("append to", self.path):
            fd = self._usable_fd()
            # Broken until proved whole: an interrupt, too, may leave half a frame.
            self._is_broken = True
            write_all(fd, data)
            self._is_broken = False
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Return once all that was appended is on the disk.

        Raises:
            StorageFailed: It may not be; a last frame tells the next process so, if it can be written.
        """
        fd = self._usable_fd()
        self._is_broken = True
        try:
            sync_file_data(fd, self.path)
        except StorageFailed:
            # The next process must not believe what it reads: these pages may count as written now.
            # One try, not synced: it has to last for as long as those pages do.
            with suppress(OSError):
                write_all(fd, encode_frame({DOUBT: self.synced_bytes}))
            raise
        self._is_broken = False
        self.synced_bytes = self.size_bytes

    def sync_with_name(self) -> None:
        """Like sync, for a file that may be new: its name is on the disk as well.

        Raises:
            StorageFailed: It may not be.
        """
        self.sync()
        # fdatasync speaks for the bytes of a file, not for the directory through which it is found.
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Let go of the file without syncing it. Safe to call twice.

        Raises:
            StorageFailed: The file system reports a failed write only now, as NFS does.
        """
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with storage_errors("close", self.path):
                os.close(fd)

    def _usable_fd(self) -> int:
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        if self._is_broken:
            raise StorageFailed(
                f"{self.path} takes nothing more: an earlier write or fsync of it failed\n"
                "  see to the cause, then run the same command again"
            )
        return self._fd
