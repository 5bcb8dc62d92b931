"""What a person sees: lines where stderr is no terminal, a bar where it is one."""

import io
from collections.abc import Sequence

from synthia_batch.core.console import Display
from synthia_batch.core.formatting import format_seconds
from synthia_batch.core.snapshot import ProgressSnapshot, WorkerSnapshot


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def take_snapshot(
    ended: int, tokens: int = 0, states: Sequence[str] = ("ready", "ready")
) -> ProgressSnapshot:
    staff = [WorkerSnapshot(worker=worker, state=state) for worker, state in enumerate(states)]
    return ProgressSnapshot(ended=ended, total=100, failed=1, tokens=tokens, workers=staff)


def test_elsewhere_than_on_a_terminal_a_line_comes_every_thirty_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    for second in range(61):
        clock.now = second
        display.show(take_snapshot(second, tokens=10 * second))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "30/100 samples (30%), 10 tokens/s, 70 s left, 1 failed, 2 workers",
        "60/100 samples (60%), 10 tokens/s, 40 s left, 1 failed, 2 workers",
    ]


def test_the_rate_is_that_of_the_last_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    tokens = 0
    for second in range(301):
        clock.now = second
        tokens += 100 if second < 200 else 10
        display.show(take_snapshot(50, tokens=tokens))
    assert ", 10 tokens/s," in stream.getvalue().splitlines()[-1]


def test_loading_engines_are_named_as_such() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    clock.now = 31
    display.show(take_snapshot(0, states=("loading", "starting")))
    assert "the engines are loading" in stream.getvalue()


def test_the_time_in_which_engines_load_is_in_no_rate() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    for second in range(31):
        clock.now = second
        display.show(take_snapshot(max(0, second - 20), tokens=100 * max(0, second - 20)))
    assert ", 100 tokens/s, 2 min left," in stream.getvalue()


def test_quiet_shows_no_progress() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock, quiet=True)
    clock.now = 100
    display.show(take_snapshot(5))
    assert stream.getvalue() == ""


def test_what_earlier_attempts_published_is_read_with_a_line_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    display = Display(stream=stream, clock=clock)
    for second in range(62):
        clock.now = second
        display.show_check(second * 10_000_000, 610_000_000)
    assert stream.getvalue().splitlines() == ["300/610 MB read, 10 MB/s", "600/610 MB read, 10 MB/s"]


def test_what_is_read_at_once_leaves_no_trace() -> None:
    for stream in (io.StringIO(), Terminal()):
        display = Display(stream=stream)
        display.show_check(500, 1000)
        display.show_check(1000, 1000)
        assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    stream, clock = Terminal(), Clock()
    display = Display(stream=stream, clock=clock)
    for second in range(4):
        clock.now = second
        display.show(take_snapshot(25 * second, tokens=100 * second))
    display.close()
    assert "75/100" in stream.getvalue()
    assert "100 tokens/s" in stream.getvalue()


def test_seconds_are_said_as_people_say_them() -> None:
    assert [format_seconds(seconds) for seconds in (4.4, 89, 120, 7500)] == [
        "4 s",
        "89 s",
        "2 min",
        "2 h 05 min",
    ]
