"""One engine and its loop, without Ray or files.

The loop runs in its own thread and never waits for a caller: `feed` and `collect` only touch queues, so
each engine step follows the previous one immediately.
"""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from synthia_batch.core.errors import EngineOutOfMemory, SampleRefused
from synthia_batch.core.types import Failed, Outcome, Request
from synthia_batch.workers.engine import Engine

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Results and state of a worker since the previous `collect`.

    `steps` counts the engine's steps since its start; the watchdog uses it to detect progress. `error` is
    the traceback that ended the loop, if any; unfinished requests are then lost. `is_out_of_memory`: a
    smaller batch might have survived. `busy_seconds` is how long the engine has had requests,
    `cached_prompt_tokens` how many its prefix cache served, both since its start. `returned` are the
    ordinals of recalled requests, which this worker will not run.
    """

    outcomes: tuple[Outcome, ...]
    steps: int
    unfinished: int
    error: str | None
    is_out_of_memory: bool = False
    busy_seconds: float = 0.0
    cached_prompt_tokens: int = 0
    returned: tuple[int, ...] = ()


NOTHING = Delivery(outcomes=(), steps=0, unfinished=0, error=None)


class Worker:
    """Runs one engine and delivers outcomes as they arrive, to the caller of the current `epoch`."""

    def __init__(
        self, engine: Engine, clock: Callable[[], float] = time.monotonic, *, epoch: int = 0
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._epoch = epoch
        self._renewal: Callable[[], None] | None = None
        self._renewed: Future[None] = Future()
        self._busy_seconds = 0.0
        self._busy_since: float | None = None
        self._cached_prompt_tokens = engine.cached_prompt_tokens
        self._changed = threading.Condition()
        self._inbox: deque[Request] = deque()
        self._outbox: list[Outcome] = []
        self._returned: list[int] = []
        self._unfinished = 0
        self._steps = 0
        self._error: str | None = None
        self._is_out_of_memory = False
        self._recalling = False
        self._aborting = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def feed(self, requests: Sequence[Request]) -> None:
        with self._changed:
            self._inbox.extend(requests)
            self._unfinished += len(requests)
            self._changed.notify_all()

    def renew(self, epoch: int, change: Callable[[Engine], Result]) -> Result:
        """Have the loop's thread `change` the engine for another job, whose epoch is `epoch`.

        Drops unfinished requests. Earlier epochs get nothing any more, also from calls that are waiting.

        Raises:
            RuntimeError: The loop has ended. Other errors are those of `change`.
        """
        results: list[Result] = []
        with self._changed:
            if self._error is not None or self._stopping:
                raise RuntimeError(self._error or "the engine is stopped")
            self._epoch, self._renewed = epoch, Future()
            self._renewal = lambda: results.append(change(self._engine))
            self._aborting = True
            self._changed.notify_all()
        self._renewed.result()
        return results[0]

    def collect(self, wait_seconds: float, epoch: int = 0) -> Delivery:
        """Return what ended since the last call, waiting up to `wait_seconds` if nothing has."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._outbox or self._returned or self._error is not None or self._epoch != epoch,
                timeout=wait_seconds,
            )
            if self._epoch != epoch:
                return NOTHING
            outcomes, self._outbox = tuple(self._outbox), []
            returned, self._returned = tuple(self._returned), []
            return Delivery(
                outcomes=outcomes,
                steps=self._steps,
                unfinished=self._unfinished,
                error=self._error,
                is_out_of_memory=self._is_out_of_memory,
                busy_seconds=self._busy_seconds + self._count_busy(),
                cached_prompt_tokens=self._cached_prompt_tokens,
                returned=returned,
            )

    def recall(self) -> None:
        """Return every request that the engine has not started; `collect` lists them."""
        with self._changed:
            self._recalling = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Drop all unfinished requests; they yield no outcome."""
        with self._changed:
            self._aborting = True
            self._changed.notify_all()

    def stop(self, wait_seconds: float) -> None:
        """End the loop and free the device, waiting up to `wait_seconds` for the current step."""
        with self._changed:
            self._aborting = self._stopping = True
            self._changed.notify_all()
        self._thread.join(wait_seconds)

    def _run(self) -> None:
        try:
            while self._admit():
                self._deliver(self._engine.step(), steps=1)
            self._engine.close()
            self._refuse_renewal(RuntimeError("the engine is stopped"))
        except BaseException as exc:  # Whatever ended the loop, the pool must learn of it.
            with self._changed:
                self._error = traceback.format_exc()
                self._is_out_of_memory = isinstance(exc, EngineOutOfMemory)
                self._mark_idle()
                self._changed.notify_all()
            self._refuse_renewal(exc)

    def _admit(self) -> bool:
        """Move the inbox into the engine, waiting while idle; False ends the loop."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._unfinished or self._recalling or self._aborting or self._stopping
            )
            if self._recalling:
                self._return_waiting()
            requests = tuple(self._inbox)
            self._inbox.clear()
            if self._aborting:
                self._engine.abort()
                self._unfinished = 0
                self._aborting = False
                requests = ()
                self._mark_idle()
            renewal, self._renewal = self._renewal, None
            if self._stopping:
                return False
            if self._unfinished and self._busy_since is None:
                self._busy_since = self._clock()
        if renewal is not None:
            self._run_renewal(renewal)
        refused = [failed for request in requests if (failed := self._add(request)) is not None]
        if refused:
            self._deliver(refused, steps=0)
        return True

    def _run_renewal(self, renewal: Callable[[], None]) -> None:
        try:
            renewal()
        except BaseException as exc:  # The caller's to handle: the loop goes on.
            self._refuse_renewal(exc)
            return
        with self._changed:
            self._outbox, self._returned = [], []
            self._steps, self._busy_seconds = 0, 0.0
            self._cached_prompt_tokens = self._engine.cached_prompt_tokens
        self._renewed.set_result(None)

    def _refuse_renewal(self, exc: BaseException) -> None:
        if not self._renewed.done():
            self._renewed.set_exception(exc)

    def _return_waiting(self) -> None:
        self._recalling = False
        ordinals = [*self._engine.withdraw(), *(request.ordinal for request in self._inbox)]
        self._inbox.clear()
        self._unfinished -= len(ordinals)
        self._returned.extend(ordinals)
        if not self._unfinished:
            self._mark_idle()
        self._changed.notify_all()

    def _add(self, request: Request) -> Failed | None:
        try:
            self._engine.add(request)
        except SampleRefused as refused:
            return Failed(ordinal=request.ordinal, code=refused.code, message=str(refused))
        return None

    def _deliver(self, outcomes: Sequence[Outcome], steps: int) -> None:
        with self._changed:
            self._steps += steps
            self._cached_prompt_tokens = self._engine.cached_prompt_tokens
            if outcomes:
                self._outbox.extend(outcomes)
                self._unfinished -= len(outcomes)
                if not self._unfinished:
                    self._mark_idle()
                self._changed.notify_all()

    def _mark_idle(self) -> None:
        self._busy_seconds += self._count_busy()
        self._busy_since = None

    def _count_busy(self) -> float:
        """Return the seconds since the engine became busy; 0 if it is idle."""
        return 0.0 if self._busy_since is None else self._clock() - self._busy_since
