"""Requests to drain: by Ctrl-C, SIGTERM, SIGHUP, a deadline or too many failures.

A second Ctrl-C ends at once.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import ClassVar


class DrainReason(Enum):
    """Why a run was asked to drain, with its exit code."""

    INTERRUPT = ("Ctrl-C", 130)
    TERMINATE = ("SIGTERM", 75)
    HANGUP = ("SIGHUP", 75)
    DEADLINE = ("the deadline", 75)
    FAILURES = ("too many failures", 3)

    def __init__(self, label: str, exit_code: int) -> None:
        self.label = label
        self.exit_code = exit_code


_REASONS = {
    signal.SIGINT: DrainReason.INTERRUPT,
    signal.SIGTERM: DrainReason.TERMINATE,
    signal.SIGHUP: DrainReason.HANGUP,
}


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
        self._signalled_at: float | None = None

    @property
    def signalled_seconds(self) -> float:
        """Seconds since a signal first asked to drain; 0 if none has."""
        return 0.0 if self._signalled_at is None else self._clock() - self._signalled_at

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
        if reason in _REASONS.values() and self._signalled_at is None:
            self._signalled_at = self._clock()
        if self._requested in (None, DrainReason.DEADLINE, DrainReason.FAILURES):
            self._requested = reason

    _listening: "ClassVar[DrainRequest | None]" = None
    """The one that hears signals now."""

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Turn SIGINT, SIGTERM and SIGHUP into drain requests during the block; in the main thread only.

        A signal in a block within another's is passed on to that one when the inner block ends.

        A SIGHUP that is ignored, as under nohup, stays ignored. A SIGINT does not: shells ignore it in
        what a script starts with `&`, where it is meant to drain as well.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.ask(_REASONS[signal.Signals(number)])

        numbers = set(_REASONS)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            numbers.remove(signal.SIGHUP)
        before = {number: signal.signal(number, on_signal) for number in numbers}
        outer, DrainRequest._listening = DrainRequest._listening, self
        try:
            yield
        finally:
            DrainRequest._listening = outer
            if outer is not None and self._signalled_at is not None and outer.reason is None:
                outer._requested, outer._signalled_at = self._requested, self._signalled_at
            for number, handler in before.items():
                signal.signal(number, handler)
