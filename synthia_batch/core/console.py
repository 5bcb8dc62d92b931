"""Progress of a running job on stderr: a bar on a terminal, else a line every 30 seconds."""

import io
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Never, Self, TextIO

from tqdm import tqdm

from synthia_batch.core.events import Event
from synthia_batch.core.formatting import format_seconds
from synthia_batch.core.snapshot import ProgressSnapshot
from synthia_batch.core.terminal import show

LINE_SECONDS = 30.0
"""Between two lines if stderr is not a terminal."""
BRIEF_SECONDS = 1.0
"""Shorter checks show no bar."""
_RATE_SECONDS = 60.0
"""The period that the current rate is measured over."""


class Display:
    """Shows the progress of one job."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `stream`, stderr if None. `quiet` shows no progress."""
        self.stream = stream or sys.stderr or io.StringIO()
        self._quiet = quiet
        self._clock = clock
        self._bar: tqdm[Never] | None = None
        self._check: ReadingDisplay | None = None
        self._history: list[tuple[float, ProgressSnapshot]] = []
        self._last_line = clock()
        self._width: int | None = None

    def observe(self, event: Event) -> None:
        if isinstance(event, ProgressSnapshot):
            with suppress(OSError, ValueError):  # A terminal that is gone is no reason to stop.
                self.show(event)

    def show_scan(self, rows: int) -> None:
        """Show how many rows of the input have been read; called often, prints rarely."""
        now = self._clock()
        if not self._quiet and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._print(f"reading the input: {rows} rows so far")

    def show_check(self, done_bytes: int, total_bytes: int) -> None:
        """Show how many published bytes of earlier attempts have been compared with their checksums."""
        if self._check is None:
            self._check = ReadingDisplay(quiet=self._quiet, stream=self.stream, clock=self._clock, brief=True)
        self._check.show(done_bytes, total_bytes)
        if done_bytes == total_bytes:
            self._check.close()

    def show(self, snapshot: ProgressSnapshot) -> None:
        """Show `snapshot`; called often, draws rarely."""
        now = self._clock()
        self._remember(now, snapshot)
        if self._quiet:
            return
        if self.stream.isatty() or _is_notebook(self.stream):
            self._draw(snapshot)
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._print(self._describe(snapshot))

    def close(self) -> None:
        """Keep the bar as it is and end its line."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):
            show(text, file=self.stream, flush=True)

    def _draw(self, snapshot: ProgressSnapshot) -> None:
        if self._bar is None:
            self._bar = self._make_bar(snapshot)
        self._fit_width(self._bar)
        self._bar.set_postfix_str(self._describe_rates(snapshot), refresh=False)
        self._bar.update(snapshot.ended - self._bar.n)

    def _fit_width(self, bar: "tqdm[Never]") -> None:
        """Remove a bar that was drawn for another width.

        tqdm would overwrite all of it with blanks, which in a narrower terminal wrap to the next line.
        """
        width = measure_width(self.stream)
        if self._width is not None and width != self._width:
            self.stream.write("\r\x1b[K")
            bar.sp = tqdm.status_printer(self.stream)
        self._width = width

    def _make_bar(self, snapshot: ProgressSnapshot) -> "tqdm[Never]":
        return tqdm(
            total=snapshot.total,
            initial=snapshot.ended,
            unit="sample",
            file=self.stream,
            dynamic_ncols=True,
            # Also between samples: a terminal is resized, and a worker is lost, at any time.
            miniters=0,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def _describe(self, snapshot: ProgressSnapshot) -> str:
        share = 100 * snapshot.ended / snapshot.total
        return f"{snapshot.ended}/{snapshot.total} samples ({share:.0f}%), {self._describe_rates(snapshot)}"

    def _describe_rates(self, snapshot: ProgressSnapshot) -> str:
        if not snapshot.count_workers("ready") and not snapshot.tokens:
            return f"the engines are loading ({_describe_workers(snapshot)})"
        first_time, first = self._history[0]
        seconds = self._history[-1][0] - first_time
        tokens = (snapshot.tokens - first.tokens) / seconds if seconds > 0 else 0.0
        samples = (snapshot.ended - first.ended) / seconds if seconds > 0 else 0.0
        left = f"{format_seconds((snapshot.total - snapshot.ended) / samples)} left" if samples else "? left"
        parts = [f"{tokens:.0f} tokens/s", left, f"{snapshot.failed} failed"]
        if snapshot.truncated:
            parts.append(f"{_describe_share(snapshot.truncated, snapshot.finished)} cut off")
        return ", ".join([*parts, _describe_workers(snapshot)])

    def _remember(self, now: float, snapshot: ProgressSnapshot) -> None:
        if self._history and now - self._history[-1][0] < 0.5:
            return
        if not snapshot.tokens:  # The rate counts from the first answer.
            self._history.clear()
        self._history.append((now, snapshot))
        while len(self._history) > 2 and now - self._history[1][0] > _RATE_SECONDS:
            self._history.pop(0)


def _is_notebook(stream: TextIO) -> bool:
    """Whether `stream` is that of a notebook's cell, which draws a bar as a terminal does."""
    return type(stream).__module__.startswith("ipykernel.")


def measure_width(stream: TextIO) -> int | None:
    """Return the columns of the terminal of `stream`, None if it has none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return None


def _describe_workers(snapshot: ProgressSnapshot) -> str:
    """Return how many workers are ready, and the states of the others."""
    ready, all_of_them = snapshot.count_workers("ready"), len(snapshot.workers)
    noun = "worker" if all_of_them == 1 else "workers"
    if ready == all_of_them:
        return f"{ready} {noun}"
    others = [
        f"{count} {state}"
        for state in ("starting", "loading", "restarting", "given up")
        if (count := snapshot.count_workers(state))
    ]
    return f"{ready} of {all_of_them} {noun}, {', '.join(others)}"


def _describe_share(part: int, whole: int) -> str:
    percent = 100 * part / whole
    return f"{percent:.0f}%" if percent >= 1 else "under 1%"


class ReadingDisplay:
    """Shows how many bytes were read, and how fast. A context manager."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        brief: bool = False,
    ) -> None:
        """Write to `stream`, stderr if None. `brief`: no bar under a second, and it is removed at the end."""
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._clock = clock
        self._brief = brief
        self._bar: tqdm[Never] | None = None
        self._started = self._last_line = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def show(self, done_bytes: int, total_bytes: int) -> None:
        """Show that `done_bytes` of `total_bytes` were read; called often, draws rarely."""
        if self._quiet or not total_bytes:
            return
        if self._stream.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    desc="checking what is published" if self._brief else None,
                    total=total_bytes,
                    unit="B",
                    unit_scale=True,
                    file=self._stream,
                    dynamic_ncols=True,
                    delay=BRIEF_SECONDS if self._brief else 0,
                    leave=not self._brief,
                )
            self._bar.update(done_bytes - self._bar.n)
        elif self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            rate = done_bytes / 1e6 / (self._last_line - self._started)
            show(
                f"{done_bytes / 1e6:.0f}/{total_bytes / 1e6:.0f} MB read, {rate:.0f} MB/s",
                file=self._stream,
                flush=True,
            )
