"""One owner per run directory, and the epoch under which it writes.

The lock keeps other processes out. The epoch, which rises with each owner, together with the plan and the
boot of the machine, tells readers what wrote a file and whether a crash can explain its damage.
"""

import errno
import fcntl
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.core.errors import IntegrityError, RunLocked
from synthia_batch.storage.atomic import publish_bytes, storage_errors
from synthia_batch.storage.layout import RunDir

_LOCKS = Path("/proc/locks")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux: a new UUID at every boot
_READER_SECONDS = 0.05
"""A `status` that asks whether the lock is held has it for less than this."""
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of flock on file systems without it: FUSE, NFS without its lock service, 9p."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The lock's current or last owner. `started_at` is ISO 8601; `epoch` counts from 1."""

    pid: int
    host: str
    started_at: str
    epoch: int


class RunLock:
    """The right to write to a run directory. A context manager; the kernel frees it when the process dies.

    It is a flock on an open file, so it is released however the process ends, and a stopped process keeps
    it. The file is close-on-exec, so spawned children do not inherit it. A forked child would keep it
    locked: never fork while holding it.
    """

    def __init__(self, run_dir: RunDir, started_at: datetime) -> None:
        self._run_dir = run_dir
        self._started_at = started_at
        # Without flock, filelock would fall back to a file whose existence is the lock. It outlives a
        # killed owner and does not work across hosts, so refuse instead.
        # The file must stay after the release, or two runs could lock two files of the same name.
        self._lock = FileLock(
            run_dir.lock, blocking=False, thread_local=False, fallback_to_soft=False, preserve_lock_file=True
        )

    def acquire(self) -> Owner:
        """Take the lock, begin the next epoch, and return the new owner."""
        self.take()
        try:
            return self.begin_epoch()
        except BaseException:
            self.release()
            raise

    def take(self) -> None:
        """Take the lock and change nothing else, so that the caller can still refuse what it finds.

        Raises:
            RunLocked: Another process has it, or the file system has no working locks.
        """
        try:
            self._lock.acquire(blocking=True, timeout=_READER_SECONDS, poll_interval=0.01)
        except Timeout as exc:
            raise RunLocked(self._describe_owner()) from exc
        except OSError as exc:
            if exc.errno in _NO_LOCKS:
                raise RunLocked(self._describe_missing_locks(exc.strerror or str(exc))) from exc
            with storage_errors("lock", self._run_dir.lock):
                raise
        try:
            self._check_exclusion()
        except BaseException:
            self.release()
            raise

    def begin_epoch(self, after: int | None = None) -> Owner:
        """Begin the next epoch under the lock, and return the new owner.

        `after` is the last epoch, for callers that know it although its record is lost.
        """
        if after is None:
            last = read_last_owner(self._run_dir)
            after = last.epoch if last else 0
        owner = Owner(
            pid=os.getpid(),
            host=socket.gethostname(),
            started_at=self._started_at.isoformat(timespec="seconds"),
            epoch=after + 1,
        )
        # On disk before anything is written under this epoch: no two owners may share one.
        publish_bytes(self._run_dir.owner, encode_checksummed(asdict(owner)))
        return owner

    def release(self) -> None:
        """Release the lock. The owner's record stays: the next epoch counts from it."""
        self._lock.release()

    def __enter__(self) -> Owner:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _check_exclusion(self) -> None:
        # Some network and user-space file systems grant every flock. Ask the kernel directly: filelock
        # may answer from its own process's state.
        fd = os.open(self._run_dir.lock, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        finally:
            os.close(fd)
        raise RunLocked(self._describe_missing_locks("it grants one lock twice"))

    def _describe_owner(self) -> str:
        try:
            owner = read_owner(self._run_dir.owner)
        except IntegrityError:
            owner = None  # the caller reports the lock; the damaged record is not its concern
        pid = _find_holder(self._run_dir.lock)
        if pid is not None and (owner is None or owner.pid != pid):
            # A new owner inspects the directory before it writes its record; this one is its predecessor's.
            who = f"pid {pid} on {socket.gethostname()}"
        else:
            who = f"pid {owner.pid} on {owner.host}, since {owner.started_at}" if owner else "another process"
        return (
            f"{self._run_dir.root} is in use by {who}; nothing was touched\n"
            "  wait for it, end it (it drains and keeps finished samples), or use another directory with -o"
        )

    def _describe_missing_locks(self, reason: str) -> str:
        return (
            f"{self._run_dir.root} is on a file system without working locks ({reason})\n"
            "  choose a directory on a local disk, or on NFS 4 or later, with -o"
        )


def lock_pipeline(run: Path) -> AbstractContextManager[object]:
    """Return the lock of the pipeline that the directory `run` is a stage of, if it is of any."""
    pipeline = find_pipeline(run)
    return nullcontext() if pipeline is None else RunLock(pipeline, datetime.now().astimezone())


def find_pipeline(run: Path) -> RunDir | None:
    """Return the directory of the pipeline that the directory `run` is a stage of, None if it is of none."""
    run = run.resolve()
    pipeline = RunDir(run.parent.parent)
    return pipeline if pipeline.stages == run.parent and pipeline.pipeline.exists() else None


def read_owner(path: Path) -> Owner | None:
    """Return the lock's current or last owner; None if it never had one. Raises IntegrityError."""
    try:
        value = read_checksummed(path)
        return None if value is None else Owner(**value)
    except (IntegrityError, TypeError) as exc:
        raise _refuse(path, "was altered") from exc


def read_last_owner(run_dir: RunDir) -> Owner | None:
    """Return the last owner; None if no run has begun.

    Raises:
        IntegrityError: The record was altered, or is missing from a run that has begun. Without it an
            epoch could be reused, and older samples could pass for newer ones.
    """
    owner = read_owner(run_dir.owner)
    if owner is None and run_dir.plan.exists():
        raise _refuse(run_dir.owner, "is missing")
    return owner


def _refuse(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} {what}: the record of the run's last epoch; nothing was touched\n"
        "  `synthia-batch verify DIR --repair` rewrites it; then run the same command again",
        reason=f"{what}: the record of the run's last epoch",
    )


def find_running(run_dir: RunDir) -> Owner | None:
    """Return the owner that is writing to the run now, or None.

    An owner on another host cannot be checked and is assumed to be running.
    """
    owner = read_owner(run_dir.owner)
    if owner is None or (owner.host == socket.gethostname() and not _is_running(owner, run_dir)):
        return None
    return owner


def is_visible(owner: Owner, run_dir: RunDir) -> bool:
    """Whether `owner` is a process that can be seen here: not on another host, nor in another container."""
    if owner.host != socket.gethostname():
        return False
    return not _LOCKS.exists() or _find_holder(run_dir.lock) is not None


def _is_running(owner: Owner, run_dir: RunDir) -> bool:
    if _LOCKS.exists():
        return _find_holder(run_dir.lock) is not None or _is_held(run_dir.lock)
    # Without the kernel's list, only the process id can be checked, and it may have been reused.
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    return True


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock at `path`, also one that /proc/locks does not show here.

    Tries a shared lock, and returns it at once: only where the kernel's list has no holder.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _find_holder(path: Path) -> int | None:
    """Return the process on this host that holds the flock of `path`, if /proc/locks lists it."""
    try:
        inode = str(path.stat().st_ino)
        for line in _LOCKS.read_text().splitlines():
            # "1: FLOCK  ADVISORY  WRITE 1234 08:01:567 0 EOF"; a waiting one has "->" in second place.
            _, kind, _, _, pid, place, *_ = line.split()
            if kind == "FLOCK" and place.rpartition(":")[2] == inode and int(pid) > 0:
                return int(pid)
    except (OSError, ValueError):
        return None
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterEpoch:
    """One opening of a run. Readers without the lock use epoch 0.

    `boot` distinguishes a process crash from a machine crash: within one boot every byte that was written
    is still there, synced or not. If the system does not provide it (None), every earlier writer is
    assumed to have lost its unsynced bytes.
    """

    plan_digest: str
    epoch: int
    boot: str | None


def read_boot_id() -> str | None:
    """Return an id of the machine's current boot, or None if the system does not provide one."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None
