"""Starts a pool in the background: engines load while the input is still being read."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from synthia_batch.workers.pools.base import Pool, PoolEvent, WorkerLost, WorkerSpec, log_refusal

POLL_SECONDS = 0.02
"""Short, since the pool can only be taken over between two polls."""
GRACE_SECONDS = 0.5
"""Time for the scan to find a first error, so that most bad inputs are refused before an engine starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedPool:
    """A pool whose workers are loading or ready, and its events so far."""

    pool: Pool
    events: Sequence[PoolEvent] = ()


class PoolStarter:
    """Starts the pool of `make_pool` once, in a separate thread, and hands it over to the caller.

    A context manager: its exit stops the pool. Before `take_over` only the thread calls the pool, afterwards
    only the caller. The thread lives until the pool has stopped: Linux ends the processes of a local Ray
    together with the thread that started them.
    """

    def __init__(
        self,
        make_pool: Callable[[], Pool],
        clock: Callable[[], float] = time.monotonic,
        log_path: Callable[[int], Path] | None = None,
    ) -> None:
        self._make_pool = make_pool
        self._log_path = log_path
        self._clock = clock
        self._created_at = clock()
        self._pool: Pool | None = None
        self._thread: threading.Thread | None = None
        self._is_wanted = threading.Event()
        self._is_handed_over = threading.Event()
        self._is_stopped = threading.Event()
        self._renewal: WorkerSpec | None = None
        self._events: list[PoolEvent] = []
        self._error: BaseException | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the pool is started or starting."""
        return self._thread is not None

    def renew(self, worker_spec: WorkerSpec) -> None:
        """Have the pool, which has begun, serve another run: `begin` and `take_over` are for that run now.

        Raises:
            SynthiaBatchError: The pool cannot start.
        """
        self._fetch()
        if self._error is not None:
            raise self._error
        self._renewal = worker_spec
        self._log_path, self._created_at, self._events = worker_spec.log_path, self._clock(), []

    def note_scan(self) -> None:
        """Report that the input is valid so far; after GRACE_SECONDS the engines start.

        Raises:
            SynthiaBatchError: The pool cannot start, so reading on is useless.
        """
        if self._error is not None:
            raise self._error
        for event in list(self._events):  # The other thread appends to it.
            if isinstance(event, WorkerLost) and event.refused is not None:
                log_refusal(event, self._log_path and self._log_path(event.worker))
                raise event.refused
        if self._clock() - self._created_at >= GRACE_SECONDS:
            self.begin()

    def begin(self) -> None:
        """Start the pool without waiting, or have it serve another run; unless that was done already."""
        if self._renewal is not None and self._pool is not None:
            renewal, self._renewal = self._renewal, None
            self._events += self._pool.renew(renewal)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pool-start", daemon=True)
            self._thread.start()

    def take_over(self) -> StartedPool:
        """Return the pool, which only the caller may use from now on.

        Raises:
            PoolFailed: There are no resources to run workers.
            UsageError: The pool does not support the settings.
        """
        self.begin()
        self._fetch()
        if self._error is not None:
            raise self._error
        if self._pool is None:
            raise RuntimeError("the pool's thread ended without a pool and without an error")
        return StartedPool(pool=self._pool, events=self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Stop the pool; on a second Ctrl-C, which arrives as KeyboardInterrupt, at once."""
        if self._thread is None:
            return
        self._fetch()
        try:
            if self._pool is not None:
                self._pool.stop(at_once=kind is KeyboardInterrupt)
        finally:
            self._is_stopped.set()
            self._thread.join()

    def _fetch(self) -> None:
        self._is_wanted.set()
        self._is_handed_over.wait()

    def _run(self) -> None:
        try:
            self._pool = self._make_pool()
            self._pool.start()
            while not self._is_wanted.is_set():
                self._events += self._pool.poll(POLL_SECONDS)
        except BaseException as exc:  # Any error must reach the thread that waits for the pool.
            self._error = exc
        self._is_handed_over.set()
        self._is_stopped.wait()
