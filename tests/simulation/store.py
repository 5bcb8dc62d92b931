"""A simulated object store under the package's own requests, mirror and lease, all in one thread."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from simulation.pool import Clock
from synthia_batch.errors import StorageFailed
from synthia_batch.storage.remote import claim, download, lease, mirror, object_store
from synthia_batch.storage.remote.object_store import ObjectStore, Patience

URL = "s3://bucket/run"
LEASE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    tag: str
    attributes: Mapping[str, str]


@dataclass
class SimulatedStore:
    """The objects of one prefix by key. `on_request` is called around each request; it may end the process.

    `on_wait` is called when a pause between two tries is over.

    With the chance `fault` a request fails: before it arrives, after that, or it arrives later than others.
    """

    clock: Clock
    draw: Random
    on_request: Callable[[Callable[[], Any]], Any] = lambda apply: apply()
    on_wait: Callable[[], None] = lambda: None
    fault: float = 0.0
    objects: dict[str, _Object] = field(default_factory=dict)
    _tags: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _late: list[Callable[[], Any]] = field(default_factory=list)

    def request(self, apply: Callable[[], Any]) -> Any:
        """Make a request, or have it fail."""
        if self._late and self.draw.random() < 0.3:
            self._arrive(self._late.pop(0))
        if self.draw.random() >= self.fault:
            return self.on_request(apply)
        fate = self.draw.choice(("lost", "answer lost", "late"))
        if fate == "answer lost":
            self._arrive(lambda: self.on_request(apply))
        elif fate == "late":
            self._late.append(apply)
        raise BaseError(f"simulated: {fate}")

    def _arrive(self, apply: Callable[[], Any]) -> None:
        try:
            apply()
        except (BaseError, FileNotFoundError):
            return  # Nobody hears of it.

    def put(self, key: str, content: bytes, *, mode: Any, attributes: Mapping[str, str], **_: Any) -> Any:
        """As obstore.put."""
        return self.request(lambda: self._put(key, bytes(content), mode, dict(attributes)))

    def _put(self, key: str, content: bytes, mode: Any, attributes: Mapping[str, str]) -> dict[str, Any]:
        found = self.objects.get(key)
        if mode == "create" and found is not None:
            raise AlreadyExistsError(key)
        if isinstance(mode, dict) and (found is None or mode.get("e_tag") != found.tag):
            raise PreconditionError(key)
        tag = f'"{next(self._tags)}"'
        self.objects[key] = _Object(content, tag, attributes)
        return {"e_tag": tag, "version": None}

    def get(self, key: str, **_: Any) -> Any:
        """As obstore.get."""
        return self.request(lambda: self._get(key))

    def _get(self, key: str) -> Any:
        found = self.objects.get(key)
        if found is None:
            raise FileNotFoundError(key)
        meta = {"size": len(found.content), "e_tag": found.tag, "version": None}
        return SimpleNamespace(bytes=lambda: found.content, meta=meta, attributes=found.attributes)

    def delete(self, key: str) -> None:
        """As obstore.delete."""
        self.request(lambda: self.objects.pop(key, None))

    def list(self) -> Iterator[list[dict[str, Any]]]:
        """As obstore.list."""
        found = [{"path": key, "size": len(one.content)} for key, one in self.objects.items()]
        return self.request(lambda: iter([found]))  # type: ignore[no-any-return]

    def read_dataset(self) -> dict[str, bytes]:
        """Return the objects of the dataset by the last part of their keys."""
        return {
            key.rpartition("/")[2]: one.content
            for key, one in self.objects.items()
            if not key.startswith(".synthia")
        }


class _Waiting:
    """A threading.Event whose waits only move the simulated clock."""

    def __init__(self, store: SimulatedStore) -> None:
        self._store = store
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, seconds: float) -> bool:
        self._store.clock.now += seconds
        self._store.on_wait()
        return self._is_set


class _NoThread:
    """A thread that never starts: see `use_store` for who does its work."""

    def __init__(self, **_: Any) -> None:
        """Take the place of a Thread."""

    def start(self) -> None:
        """Do nothing."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for nothing."""

    def is_alive(self) -> bool:
        return False


_submit, _Condition = mirror.Mirror.submit, mirror.threading.Condition


def use_store(store: SimulatedStore) -> None:
    """Have every store that the package opens be `store`, and its threads' work done by their callers."""

    def open_store(url: str, patience: Patience) -> ObjectStore:
        opened = ObjectStore(url, store, patience)  # type: ignore[arg-type]
        opened._closing = _Waiting(store)  # type: ignore[assignment]
        return opened

    clock = store.clock
    lease.time = SimpleNamespace(  # type: ignore[assignment]
        time=lambda: 1e9 + clock.now, clock_gettime=lambda which: clock.now, CLOCK_BOOTTIME=0
    )
    ObjectStore._call = lambda self, call: call()  # type: ignore[method-assign]
    # Pauses between tries are waited for on the same clock that they are counted on.
    object_store.time = SimpleNamespace(monotonic=lambda: clock.now)  # type: ignore[assignment]
    for module in (claim, download):
        module.open_object_store = open_store  # type: ignore[attr-defined]
    mirror.threading = SimpleNamespace(Thread=_NoThread, Condition=_Condition)  # type: ignore[assignment]
    lease.Lease.start = lambda self: None  # type: ignore[method-assign]
    mirror.Mirror._wait = _work_to_the_end  # type: ignore[method-assign]
    mirror.Mirror.submit = _submit_and_work(store.draw)  # type: ignore[method-assign]
    for name in ("put", "get", "delete", "list"):
        setattr(obstore, name, _dispatch(name))


def _dispatch(name: str) -> Callable[..., Any]:
    def call(client: Any, *arguments: Any, **options: Any) -> Any:
        return getattr(client, name)(*arguments, **options)

    return call


def _work_to_the_end(self: mirror.Mirror) -> None:
    self._is_closing = True
    self._work()
    if self._error is not None:
        raise self._error


def _submit_and_work(draw: Random) -> Callable[..., None]:
    """Return a `submit` after which the mirror sometimes gets to work at once."""

    def submit(self: mirror.Mirror, shard: Any, shard_entry: Any) -> None:
        _submit(self, shard, shard_entry)
        if draw.random() < 0.5:
            return
        waiting = list(self._waiting)
        self._is_closing = True
        self._work()
        self._is_closing = False
        if isinstance(self._error, StorageFailed):
            self._error = None
            self._waiting.clear()
            self._waiting.extend(waiting)

    return submit
