"""One writer per prefix, across machines: a lease object that its owner renews.

A process has the lease until the time in the object, and after that until another takes it over. Each change
of the object names the version that it replaces, so only one of two contenders gets it, and an owner that was
stopped for too long finds out with its next request. Clock differences shift the moment from which another
may take over, but never give one version two owners.
"""

import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Self

from synthia_batch.core.errors import IntegrityError, LeaseLost, RunLocked, StorageFailed, UsageError
from synthia_batch.storage.remote.object_metadata import Version
from synthia_batch.storage.remote.object_store import ObjectStore

KEY = ".synthia/lease.json"
_LOOK_SECONDS = 0.2
_TRIES = 5
"""How often a free lease is tried for that changes between reading and taking it."""
RENEWALS = 3
"""Number of renewals within the duration of a lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRecord:
    """The content of the lease object. `ends_at` is in seconds since 1970; 0 once released.

    `state` names the owner's state directory. `nonce` identifies this write of the record.
    """

    pid: int
    host: str
    state: str
    epoch: int
    ends_at: float
    nonce: str

    @property
    def is_free(self) -> bool:
        """Whether anyone may take it now."""
        return self.ends_at <= time.time()

    def describe(self, url: str) -> str:
        """Return a description of the writer below `url`."""
        if not self.ends_at:
            return f"{url} was last written by pid {self.pid} on {self.host}"
        until = datetime.fromtimestamp(self.ends_at, UTC).isoformat(timespec="seconds")
        return f"{url} is being written by pid {self.pid} on {self.host}, whose lease lasts until {until}"


def read_lease(store: ObjectStore) -> LeaseRecord | None:
    """Return the current or last lease; None if there never was one."""
    found = store.read(KEY)
    return None if found is None else _decode(found.content, store.url)


class Lease:
    """The lease while it is ours. Its own thread renews it between `start` and `release`."""

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
        # Nonces of requests whose answers were lost: one of them may be in the store now.
        self._sent: set[str] = set()

    @property
    def state(self) -> str:
        """The name of the state directory for which it is held."""
        return self._record.state

    @classmethod
    def acquire(cls, store: ObjectStore, state: str, seconds: float) -> Self:
        """Take the lease, and verify that the store honours conditions.

        `state` names our state directory. Since we hold its lock, the owner of a lease with that name has
        died, and its lease is taken at once.

        Raises:
            RunLocked: Another process has it. Nothing was changed.
            UsageError: The bucket does not exist, or the store ignores conditions.
        """
        last = None
        for _ in range(_TRIES):
            started = _now()
            found = store.read(KEY)
            last = None if found is None else _decode(found.content, store.url)
            if last is not None and not last.is_free and last.state != state:
                raise _refuse(store, last)
            previous, record = last, _sign(state, last.epoch + 1 if last else 1, seconds)
            content = _encode(record)
            version = store.create(KEY, content, {}) if found is None else store.replace(
                KEY, content, {}, found.version
            )  # fmt: skip
            if version is None:
                there = store.read(KEY)
                last = None if there is None else _decode(there.content, store.url)
                if there is None or last is None or last.nonce != record.nonce:
                    continue  # Another took it, or the late request of a process that has ended arrived.
                version = there.version
            lease = cls(store, record, version, seconds)
            lease._renewed_at = started
            lease.previous = previous
            lease._probe(content)
            return lease
        raise _refuse(store, last)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Return unless the lease is known to be lost. Sends no request.

        Raises:
            LeaseLost: Another process has taken it over.
        """
        if self._lost is not None:
            raise self._lost

    def ensure(self) -> None:
        """Return once the lease is certainly ours; renew it if it may have ended. Call before a write."""
        self.check()
        if _now() >= self._renewed_at + self._seconds:
            self.renew()

    def renew(self) -> None:
        """Extend the lease to its full duration from now."""
        with self._mutex:
            self.check()
            self._write(_sign(self._record.state, self._record.epoch, self._seconds))

    def release(self) -> None:
        """Release the lease if it is still ours and the store answers; otherwise it expires."""
        self._ended.set()
        while self._thread.is_alive():
            self._thread.join(_LOOK_SECONDS)
            if self._store.is_given_up:
                return
        try:
            with self._mutex:
                self.check()
                self._write(replace(self._record, ends_at=0.0, nonce=uuid.uuid4().hex))
        except (LeaseLost, StorageFailed):
            return

    def withdraw(self) -> None:
        """Put back the previous lease: this process must not write to the prefix after all."""
        if self.previous is None:
            self._store.remove(KEY)
        else:
            with self._mutex:
                self._write(replace(self.previous, ends_at=0.0, nonce=uuid.uuid4().hex))
        self._lost = LeaseLost(f"the lease of {self._store.url} was given up")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
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
            # One of our own requests arrived, perhaps an earlier one: continue from its version.
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
                # It can still be renewed later if nobody else takes it: `ensure` does that.
                continue

    def _probe(self, content: bytes) -> None:
        """Try writes whose conditions are false: a store that accepts one ignores conditions."""
        bogus = Version(e_tag=_alter(self._version.e_tag), number=_alter(self._version.number))
        honours_conditions = (
            self._store.create(KEY, content, {}) is None
            and self._store.replace(KEY, content, {}, bogus) is None
        )
        if not honours_conditions:
            raise UsageError(
                f"{self._store.url}: this store ignores If-None-Match or If-Match, so two writers, or "
                "one late request, could overwrite each other silently; no part was written\n"
                "  use a store with conditional writes, or write to a directory and copy it there"
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
    """Return a tag of the same form that matches no version: every store's tags and numbers have digits."""
    return None if tag is None else tag.translate(str.maketrans("0123456789", "9876543210"))


def _now() -> float:
    # Unlike time.monotonic, this clock keeps counting while the machine sleeps, as the lease does.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _encode(record: LeaseRecord) -> bytes:
    return json.dumps(asdict(record), indent=2).encode() + b"\n"


def _decode(content: bytes, url: str) -> LeaseRecord:
    try:
        return LeaseRecord(**json.loads(content))
    except (TypeError, ValueError) as exc:
        raise IntegrityError(f"{url}/{KEY} is not a lease of synthia-batch; nothing was touched") from exc


def _refuse(store: ObjectStore, owner: LeaseRecord | None) -> RunLocked:
    who = owner.describe(store.url) if owner else f"{store.url} was just taken by another process"
    return RunLocked(
        f"{who}; nothing was touched\n"
        "  wait for it, or end it (it drains and keeps finished samples); if that machine is gone, run this "
        "again once the lease has ended"
    )


def _describe_loss(store: ObjectStore, owner: LeaseRecord | None) -> str:
    event = f"taken over by pid {owner.pid} on {owner.host}" if owner else "removed"
    return (
        f"the lease of {store.url} was {event} while this process did not renew it; this process writes "
        "nothing more there\n"
        "  let the other run continue; samples finished here stay in the state directory"
    )
