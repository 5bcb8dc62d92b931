"""Stopping on request: Ctrl-C, SIGTERM and a deadline ask a run to drain; a second Ctrl-C ends it at once."""

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

    def __init__(self, label: str, exit_code: int) -> None:
        self.label = label
        self.exit_code = exit_code


class DrainRequest:
    """Whether, and why, the run should drain. `deadline_seconds` counts from now."""

    def __init__(
        self, deadline_seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._deadline = None if deadline_seconds is None else clock() + deadline_seconds
        self._asked: DrainReason | None = None

    @property
    def reason(self) -> DrainReason | None:
        """Why to drain; None to go on."""
        if self._asked is None and self._deadline is not None and self._clock() >= self._deadline:
            self._asked = DrainReason.DEADLINE
        return self._asked

    def ask(self, reason: DrainReason) -> None:
        """Ask to drain. An interrupt that follows another raises KeyboardInterrupt instead."""
        if reason is DrainReason.INTERRUPT and self._asked is DrainReason.INTERRUPT:
            raise KeyboardInterrupt
        self._asked = self._asked or reason

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
