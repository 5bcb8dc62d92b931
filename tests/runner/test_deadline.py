"""When a run stops by itself: clocks that are passed in, and real runs that end in time."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from conftest import Command, read_bytes_of_data, read_call_log, write_jsonl

from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.job.schema import Job
from synthia_batch.runner.monitoring.lifecycle import open_drain
from synthia_batch.scheduler.progress import RECENT_REQUESTS, LatencyWindow

BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"
"""Its rules in themselves: no time zone database is needed."""


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", BERLIN)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def local(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone()


def find_hours(now: str, **said: object) -> float:
    """Return the hours from `now` to when the run is to stop."""
    moment = local(now)
    drain = open_drain(Job(input={"path": "q.jsonl"}, **said), moment)  # type: ignore[arg-type]
    # The request is asked against the real clock: what it has left is counted from there.
    return round((drain.seconds_left + time.time() - moment.timestamp()) / 3600, 2)


@pytest.mark.parametrize(
    ("now", "stop_at", "hours"),
    [
        ("2026-11-21T23:30", "07:00", 7.5),
        ("2026-11-21T06:30", "07:00", 0.5),
        ("2026-11-21T07:00", "07:00", 24.0),
        ("2026-03-28T23:00", "07:00", 7.0),  # the clocks go forward at two
        ("2026-10-24T23:00", "07:00", 9.0),  # they go back at three
        ("2026-03-29T00:30", "02:30", 2.0),  # not on the clock that night: as much after it went forward
        ("2026-12-31T23:59", "00:00", 0.02),
    ],
)
def test_a_time_of_day_is_the_next_one_on_the_clock_of_the_wall(now: str, stop_at: str, hours: float) -> None:
    assert find_hours(now, stop_at=stop_at) == pytest.approx(hours, abs=0.011)


def test_what_is_said_names_the_time_and_the_day(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "synthia_batch")
    now = datetime.now().astimezone()
    open_drain(Job(input={"path": "q.jsonl"}, deadline="26h"), now)  # type: ignore[arg-type]
    stop = datetime.fromtimestamp(round(now.timestamp() + 26 * 3600))
    assert caplog.messages[0].startswith(f"stops by {stop:%H:%M:%S}")
    assert f" on {stop:%A}, in 26 h 00 min" in caplog.messages[0]
    assert "the same command resumes the run" in caplog.messages[0]


def test_a_time_of_day_is_said_as_it_was_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "synthia_batch")
    open_drain(Job(input={"path": "q.jsonl"}, stop_at="07:00"))  # type: ignore[arg-type]
    assert caplog.messages[0].startswith("stops by 07:00:00")


def test_without_a_deadline_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "synthia_batch")
    assert open_drain(Job(input={"path": "q.jsonl"})).reason is None  # type: ignore[arg-type]
    assert not caplog.messages


def test_of_both_the_earlier_counts() -> None:
    now, wall = 100.0, 5000.0
    request = DrainRequest(60.0, lambda: now, stop_time=5030.0, wall_clock=lambda: wall)
    assert request.seconds_left == 30
    now, wall = 129.0, 5029.0
    assert request.reason is None
    wall = 5030.0
    assert request.reason is DrainReason.DEADLINE
    other = DrainRequest(10.0, lambda: now, stop_time=9000.0, wall_clock=lambda: wall)
    assert other.seconds_left == 10


def test_a_machine_that_slept_stops_by_the_clock_of_the_wall() -> None:
    wall = 5000.0
    request = DrainRequest(None, lambda: 100.0, stop_time=6000.0, wall_clock=lambda: wall)
    wall = 6001.0  # while the monotonic clock stood still
    assert request.reason is DrainReason.DEADLINE


def test_the_deadline_leaves_time_to_what_is_in_flight() -> None:
    now = 0.0
    request = DrainRequest(100.0, lambda: now)
    request.reserve(30.0)
    now = 69.0
    assert request.reason is None
    now = 70.0
    assert request.reason is DrainReason.DEADLINE
    assert request.seconds_left == 30


def test_somebody_who_asks_goes_before_the_deadline() -> None:
    request = DrainRequest(0.0, lambda: 1.0)
    assert request.reason is DrainReason.DEADLINE
    request.ask(DrainReason.TERMINATE)
    assert request.reason is DrainReason.TERMINATE


def test_the_latency_window_has_the_longest_of_the_latest_requests() -> None:
    window = LatencyWindow()
    assert window.longest_seconds == 0
    window.add_sent([1, 2], 0.0)
    window.add_ended([1], 5.0)
    window.add_sent([2], 8.0)  # its worker was lost: it is sent again
    window.add_ended([2, 77], 9.0)
    assert window.longest_seconds == 5
    window.add_sent(range(100, 100 + RECENT_REQUESTS), 10.0)
    window.add_ended(range(100, 100 + RECENT_REQUESTS), 12.0)
    assert window.longest_seconds == 2, "what was long ago is forgotten"


def test_a_run_stops_admitting_in_time_and_drops_nothing(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(200)])
    log = tmp_path / "calls"
    flags = ("--engine", "scripted", "--pool", "local", "--set", f"engine.call_log={log}", "-o", "out")
    slow = ("--set", "engine.latency_ms=500", "--set", "engine.max_num_seqs=8")
    done = synthia("run", source, *flags, *slow, "--deadline", "6s")
    assert done.returncode == 75, done.stderr
    assert "stops by " in done.stderr
    assert "drained on the deadline" in done.stderr
    assert "--deadline 6s" in done.stderr.split("resume with: ")[1]
    finished = json.loads(synthia("status", "out", "--json").stdout)["finished"]
    assert 0 < finished < 200
    again = synthia("run", source, *flags)
    assert again.returncode == 0, again.stderr
    calls = read_call_log(log)
    assert len(calls) == len(set(calls)) == 200, "what was in flight has ended: nothing was made twice"
    whole = synthia("run", source, *flags[:4], "-o", "whole")
    assert whole.returncode == 0
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")
