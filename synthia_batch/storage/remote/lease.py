"""One writer per prefix, on whatever machine: a lease object that its owner renews.

A process has the lease until the time that the object names, and after that for as long as nobody else
takes it over. Each change of the object says which version it replaces, so of two that want it one gets
it, and an owner that was stopped for too long finds out with its next request. Clocks that differ move
the moment from which another may take over; they never give two owners to one version.
"""

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from synthia_batch.errors import IntegrityError, LeaseLost, RunLocked, StorageFailed, UsageError
from synthia_batch.storage.remote.object_store import ObjectStore, Version

KEY = ".synthia/lease.json"
RENEWALS = 3
"""So many times it is renewed before it would end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """What the object holds. `ends_at` is in seconds since 1970; 0 once it was given back.

    `state` names the state directory of its owner, `nonce` this one writing of the record.
    """

    pid: int
    host: str
    state: str
    epoch: int
    ends_at: float
    nonce: str

    @property
    def is_free(self) -> bool:
        """Whether another may take it now."""
        return self.ends_at <= time.time()

    def describe(self, url: str) -> str:
        """Return who writes below `url`, in words."""
        if not self.ends_at:
            return f"{url} was last written by pid {self.pid} on {self.host}"
        until = datetime.fromtimestamp(self.ends_at, UTC).isoformat(timespec="seconds")
        return f"{url} is being written by pid {self.pid} on {self.host}, whose lease lasts until {until}"


def read_lease(store: ObjectStore) -> LeaseRecord | None:
    """Return who has the lease, or had it last; None where nobody ever had.

    Raises:
        IntegrityError: The object is none of ours.
        StorageFailed: The store does not answer, or does not allow it.
    """
    found = store.read(KEY)
    return None if found is None else _decode(found.content, store.url)


class Lease:
    """The lease while it is ours. Renewed by a thread of its own between `start` and `release`."""

    def __init__(self, store: ObjectStore, record: LeaseRecord, version: Version, seconds: float) -> None:
        self.previous: LeaseRecord | None = None
        self._store = store
        self._record = record
        self._version = version
        self._seconds = seconds
        self._renewed_at = _now()
        self._lost: LeaseLost | None = None
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)
        # Requests whose answers were lost: one of them may be what is there now.
        self._sent: set[str] = set()

    @property
    def state(self) -> str:
        """The name of the state directory for which it is held."""
        return self._record.state

    @classmethod
    def take(cls, store: ObjectStore, state: str, seconds: float) -> Self:
        """Take the lease, and make sure that the store heeds conditions.

        `state` names our state directory, whose lock is ours: of a lease under that name the process has
        died, and it is taken at once.

        Raises:
            RunLocked: Another has it. Nothing was touched.
            UsageError: There is no such bucket, or the store ignores conditions.
            StorageFailed: The store does not answer, or does not allow it.
        """
        started = _now()
        found = store.read(KEY)
        last = None if found is None else _decode(found.content, store.url)
        if last is not None and not last.is_free and last.state != state:
            raise _refuse(store, last)
        record = _sign(state, last.epoch + 1 if last else 1, seconds)
        content = _encode(record)
        version = store.create(KEY, content, {}) if found is None else store.replace(
            KEY, content, {}, found.version
        )  # fmt: skip
        if version is None:
            there = store.read(KEY)
            if there is None or _decode(there.content, store.url).nonce != record.nonce:
                raise _refuse(store, last if there is None else _decode(there.content, store.url))
            version = there.version
        lease = cls(store, record, version, seconds)
        lease._renewed_at = started
        lease.previous = last
        lease._probe(content)
        return lease

    def start(self) -> None:
        """Renew it from now on."""
        self._thread.start()

    def check(self) -> None:
        """Return while nobody is known to have taken the lease over. Sends nothing.

        Raises:
            LeaseLost: Somebody has.
        """
        if self._lost is not None:
            raise self._lost

    def hold(self) -> None:
        """Return while the lease is ours for certain, renewing it where it may have ended: before a write.

        Raises:
            LeaseLost: Another has taken it over.
            StorageFailed: The store does not answer, or does not allow it.
        """
        self.check()
        if _now() >= self._renewed_at + self._seconds:
            self.renew()

    def renew(self) -> None:
        """Make the lease last for its whole time from now on.

        Raises:
            LeaseLost, StorageFailed: As for hold.
        """
        with self._mutex:
            self.check()
            self._write(_sign(self._record.state, self._record.epoch, self._seconds))

    def release(self) -> None:
        """Give the lease back, if it is still ours and the store answers; else it ends by itself."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            with self._mutex:
                self.check()
                self._write(replace(self._record, ends_at=0.0, nonce=uuid.uuid4().hex))
        except (LeaseLost, StorageFailed):
            return

    def withdraw(self) -> None:
        """Leave the prefix as it was, where it turns out that it was not to be written to from here."""
        if self.previous is None:
            self._store.remove(KEY)
        else:
            with self._mutex:
                self._write(replace(self.previous, ends_at=0.0, nonce=uuid.uuid4().hex))
        self._lost = LeaseLost(f"the lease of {self._store.url} was given up")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _write(self, record: LeaseRecord) -> None:
        started = _now()
        self._sent.add(record.nonce)
        content = _encode(record)
        version = self._store.replace(KEY, content, {}, self._version)
        while version is None:
            there = self._store.read(KEY)
            found = None if there is None else _decode(there.content, self._store.url)
            if there is None or found is None or found.nonce not in self._sent:
                self._lost = LeaseLost(_describe_loss(self._store, found))
                raise self._lost
            # It was ours that arrived: of an earlier request, perhaps, so this one goes on from there.
            version = there.version
            if found.nonce != record.nonce:
                version = self._store.replace(KEY, content, {}, there.version)
        self._sent = {record.nonce}
        self._record, self._version, self._renewed_at = record, version, started

    def _keep_renewing(self) -> None:
        pause = self._seconds / RENEWALS
        while not self._ended.wait(pause):
            try:
                self.renew()
            except LeaseLost:
                return
            except (StorageFailed, UsageError, IntegrityError):
                # For as long as nobody else takes it, it can be renewed later: `hold` sees to it.
                continue

    def _probe(self, content: bytes) -> None:
        """Write the lease again under conditions that cannot hold: a store that does it heeds none."""
        bogus = Version(e_tag=_alter(self._version.e_tag), number=_alter(self._version.number))
        heeds = (
            self._store.create(KEY, content, {}) is None
            and self._store.replace(KEY, content, {}, bogus) is None
        )
        if not heeds:
            raise UsageError(
                f"{self._store.url}: this store ignores If-None-Match or If-Match, so two writers, or "
                "one late request, could overwrite each other silently; it is not written to\n"
                "  name a store with conditional writes, or write to a directory and copy it there"
            )


def _sign(state: str, epoch: int, seconds: float) -> LeaseRecord:
    return LeaseRecord(
        pid=os.getpid(),
        host=socket.gethostname(),
        state=state,
        epoch=epoch,
        ends_at=time.time() + seconds,
        nonce=uuid.uuid4().hex,
    )


def _alter(tag: str | None) -> str | None:
    """Return a tag of the same form that no version has: tags and numbers have digits in every store."""
    return None if tag is None else tag.translate(str.maketrans("0123456789", "9876543210"))


def _now() -> float:
    # Goes on while the machine sleeps, as the lease does.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _encode(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record), indent=2).encode() + b"\n"


def _decode(content: bytes, url: str) -> LeaseRecord:
    try:
        return LeaseRecord(**json.loads(content))
    except (TypeError, ValueError) as exc:
        raise IntegrityError(f"{url}/{KEY} is no lease of synthia-batch; nothing was touched") from exc


def _refuse(store: ObjectStore, owner: LeaseRecord | None) -> RunLocked:
    who = owner.describe(store.url) if owner else f"{store.url} was taken by another this very moment"
    return RunLocked(
        f"{who}; nothing was touched\n"
        "  wait for it, or end it (it drains and keeps what is finished); if that machine is gone, run this "
        "again once the lease has ended"
    )


def _describe_loss(store: ObjectStore, owner: LeaseRecord | None) -> str:
    by = f"pid {owner.pid} on {owner.host}" if owner else "somebody who removed it"
    return (
        f"the lease of {store.url} was taken over by {by} while this process did not renew it; "
        "nothing more is written there from here\n"
        "  let that run go on; what was finished here is kept in the state directory"
    )
