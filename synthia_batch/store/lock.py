"""One owner per run directory, and the epoch that tells its writings from those before it."""

import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from synthia_batch.errors import IntegrityError, RunLocked
from synthia_batch.store.atomic import publish_bytes, storage_errors
from synthia_batch.store.run_dir import RunDir

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""What flock gives on file systems that cannot do it: FUSE, NFS without its lock service, 9p."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds the lock, or held it last. `started_at` is ISO 8601; `epoch` counts from 1."""

    pid: int
    host: str
    started_at: str
    epoch: int


class RunLock:
    """The right to write to a run directory. A context manager; the kernel frees it when we die.

    It is a flock: it belongs to the open file, so that it goes with the process however that ends,
    and a stopped process keeps it. The file is opened close-on-exec and so does not leak to
    spawned children; a forked child would keep the lock alive: never fork while holding it.
    """

    def __init__(self, run_dir: RunDir, started_at: datetime) -> None:
        self._run_dir = run_dir
        self._started_at = started_at
        # Where flock is missing, filelock would fall back to a file that merely exists: it outlives
        # a killed owner and excludes nobody across hosts. Better no run than that.
        # The name must stay after the release, or two runs could lock two files of one name.
        self._lock = FileLock(
            run_dir.lock,
            blocking=False,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
        )

    def acquire(self) -> Owner:
        """Take the lock, begin the next epoch, and return it with who we are.

        Raises:
            RunLocked: Another process has it, or the file system has no working locks.
            IntegrityError: The record of the last owner, and with it the epoch, was altered.
            StorageFailed: The lock file could not be made, or the new record not be written.
        """
        try:
            self._lock.acquire()
        except Timeout as exc:
            raise RunLocked(self._describe_owner()) from exc
        except OSError as exc:
            if exc.errno in _NO_LOCKS:
                raise RunLocked(self._describe_missing_locks(exc.strerror or str(exc))) from exc
            with storage_errors("lock", self._run_dir.lock):
                raise
        try:
            self._check_exclusion()
            return self._begin_epoch()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the lock back. The record of the owner stays: the next epoch counts from it."""
        self._lock.release()

    def __enter__(self) -> Owner:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _check_exclusion(self) -> None:
        # Some network and user-space file systems say yes to every flock. Asked of the kernel itself:
        # filelock may answer from what it knows of its own process.
        fd = os.open(self._run_dir.lock, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        finally:
            os.close(fd)
        raise RunLocked(self._describe_missing_locks("it grants one lock twice"))

    def _begin_epoch(self) -> Owner:
        last = read_owner(self._run_dir.owner)
        owner = Owner(
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started_at.isoformat(timespec="seconds"),
            epoch=last.epoch + 1 if last else 1,
        )
        # On the disk before anything is written under this epoch: no two openings may share one.
        publish_bytes(self._run_dir.owner, json.dumps(asdict(owner)).encode() + b"\n")
        return owner

    def _describe_owner(self) -> str:
        # In the moment between the owner's lock and its record this names the owner before it.
        owner = read_owner(self._run_dir.owner)
        who = f"pid {owner.pid} on {owner.host}, since {owner.started_at}" if owner else "another process"
        return (
            f"{self._run_dir.root} is in use by {who}; nothing was touched\n"
            "  wait for it, end it (it drains and keeps what is finished), or name another directory with -o"
        )

    def _describe_missing_locks(self, reason: str) -> str:
        return (
            f"{self._run_dir.root} lies on a file system without working locks ({reason})\n"
            "  name a directory on a local disk, or on NFS 4 or later, with -o"
        )


def read_owner(path: Path) -> Owner | None:
    """Return who holds the lock, or held it last; None if nobody ever did.

    Raises:
        IntegrityError: The record cannot be read.
    """
    try:
        return Owner(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as exc:
        raise IntegrityError(
            f"{path} cannot be read: {exc}\n"
            "  if no run is using the directory, remove the file and run the same command again"
        ) from exc
