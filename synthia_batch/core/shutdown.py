"""Stopping on request: Ctrl-C, SIGTERM, a deadline or too many failures ask a run to drain. Ctrl-C while it
drains ends it at once."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType


class DrainReason(Enum):
    """Why a run was asked to drain, with the exit code that says so."""

    INTERRUPT = ("Ctrl-C", 130)
    TERMINATE = ("SIGTERM", 75)
    DEADLINE = ("the deadline", 75)
    FAILURES = ("too many failures", 3)

    def __init__(self, label: str, exit_code: int) -> None:
        self.label = label
        self.exit_code = exit_code


class DrainRequest:
    """Whether, and why, the run should drain.

    `deadline_seconds` counts from now, `stop_time` is on the clock of the wall, in seconds since 1970;
    the earlier of them is the deadline. It is the time by which the last sample in flight should have
    ended, so the run is asked to drain earlier by the seconds that `reserve` was given.
    """

    def __init__(
        self,
        deadline_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        stop_time: float | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._deadline = math.inf if deadline_seconds is None else clock() + deadline_seconds
        self._stop_time = math.inf if stop_time is None else stop_time
        self._reserved_seconds = 0.0
        self._asked: DrainReason | None = None

    @property
    def seconds_left(self) -> float:
        """The seconds until the deadline: infinite without one, negative after it."""
        return min(self._deadline - self._clock(), self._stop_time - self._wall_clock())

    @property
    def reason(self) -> DrainReason | None:
        """Why to drain; None to go on."""
        if self._asked is None and self.seconds_left <= self._reserved_seconds:
            self._asked = DrainReason.DEADLINE
        return self._asked

    def reserve(self, seconds: float) -> None:
        """Have the deadline leave so much time to what is in flight."""
        self._reserved_seconds = seconds

    def ask(self, reason: DrainReason) -> None:
        """Ask to drain. What somebody asks for goes before what the run asks of itself.

        Raises:
            KeyboardInterrupt: It is an interrupt, and the run drains already.
        """
        if reason is DrainReason.INTERRUPT and self._asked is not None:
            raise KeyboardInterrupt
        if self._asked in (None, DrainReason.DEADLINE, DrainReason.FAILURES):
            self._asked = reason

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into requests within the block, in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.ask(DrainReason.INTERRUPT if number == signal.SIGINT else DrainReason.TERMINATE)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
