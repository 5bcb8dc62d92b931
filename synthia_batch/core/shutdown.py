"""Requests to drain: from Ctrl-C, SIGTERM, a deadline or too many failures. A second Ctrl-C ends at once."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType


class DrainReason(Enum):
    """Why a run was asked to drain, with its exit code."""

    INTERRUPT = ("Ctrl-C", 130)
    TERMINATE = ("SIGTERM", 75)
    DEADLINE = ("the deadline", 75)
    FAILURES = ("too many failures", 3)

    def __init__(self, label: str, exit_code: int) -> None:
        self.label = label
        self.exit_code = exit_code


class DrainRequest:
    """Whether, and why, the run should drain.

    The deadline is the earlier of `deadline_seconds` from now and `stop_time` (wall clock, in seconds
    since 1970). The last sample in flight should have finished by then, so draining starts earlier by
    the number of seconds passed to `reserve`.
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
        self._requested: DrainReason | None = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline: infinite without one, negative after it."""
        return min(self._deadline - self._clock(), self._stop_time - self._wall_clock())

    @property
    def reason(self) -> DrainReason | None:
        """Why to drain; None to continue."""
        if self._requested is None and self.seconds_left <= self._reserved_seconds:
            self._requested = DrainReason.DEADLINE
        return self._requested

    def reserve(self, seconds: float) -> None:
        """Start draining `seconds` before the deadline, to let samples in flight finish."""
        self._reserved_seconds = seconds

    def ask(self, reason: DrainReason) -> None:
        """Ask to drain. A signal replaces a reason that the run found itself.

        Raises:
            KeyboardInterrupt: An interrupt while the run is already draining.
        """
        if reason is DrainReason.INTERRUPT and self._requested is not None:
            raise KeyboardInterrupt
        if self._requested in (None, DrainReason.DEADLINE, DrainReason.FAILURES):
            self._requested = reason

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into drain requests during the block; in the main thread only."""
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
