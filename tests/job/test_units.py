"""Numbers as people type them."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from synthia_batch.job.schema import Job
from synthia_batch.job.units import (
    Share,
    count_allowed,
    find_next,
    parse_clock,
    parse_count,
    parse_duration,
    parse_failure_limit,
    parse_token_length,
    spell_duration,
)


@pytest.mark.parametrize(
    ("text", "count", "tokens"),
    [
        ("200", 200, 200),
        (200, 200, 200),
        ("32K", 32_000, 32_768),
        ("32k", 32_000, 32_768),
        (" 1.5 M ", 1_500_000, 1_572_864),
        ("1_000", 1000, 1000),
        ("1,000,000", 1_000_000, 1_000_000),
        ("0.5K", 500, 512),
        ("9007199254740993", 9007199254740993, 9007199254740993),
    ],
)
def test_a_count_has_decimal_suffixes_and_a_length_in_tokens_binary_ones(
    text: Any, count: int, tokens: int
) -> None:
    assert (parse_count(text), parse_token_length(text)) == (count, tokens)


@pytest.mark.parametrize("text", ["", "K", "many", "-5", "1e5", "1.2345K", "0.5", "32KB", "1..2K", True])
def test_what_is_no_count_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="Input should be a"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "seconds", "again"),
    [
        ("90", 90, "1m30s"),
        (90, 90, "1m30s"),
        ("90s", 90, "1m30s"),
        ("10m", 600, "10m"),
        ("7h30m", 27_000, "7h30m"),
        ("7h 30m", 27_000, "7h30m"),
        ("1d", 86_400, "1d"),
        ("1.5h", 5400, "1h30m"),
        ("1D2H3M4S", 93_784, "1d2h3m4s"),
        ("0.5", 0.5, "0.5s"),
        ("0", 0, "0s"),
    ],
)
def test_a_duration_comes_to_seconds_and_back(text: Any, seconds: float, again: str) -> None:
    assert parse_duration(text) == seconds
    assert spell_duration(seconds) == again


@pytest.mark.parametrize("text", ["", "h", "30m7h", "7:30", "tomorrow", "1w", "-5m", "1.2.3s", ".", True])
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="Input should be a"):
        parse_duration(text)


def test_a_limit_of_failures_is_a_count_or_a_share() -> None:
    assert parse_failure_limit("500") == parse_failure_limit(500) == parse_failure_limit(500.0) == 500
    assert parse_failure_limit("2K") == 2000
    assert parse_failure_limit(" 0.5 % ") == parse_failure_limit(Share(0.5)) == Share(0.5)
    assert str(Share(0.5)) == "0.5%"
    limits = [count_allowed(limit, 300) for limit in (None, 0, 7, Share(1), Share(0.5), Share(100))]
    assert limits == [None, 0, 7, 3, 1, 300]


@pytest.mark.parametrize("text", [-1, "-1", "0%", "101%", "%", "some", 0.5, True, None, []])
def test_what_is_no_limit_of_failures_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="Input should be a"):
        parse_failure_limit(text)


@pytest.mark.parametrize(("text", "clock"), [("07:00", "07:00"), ("7:00", "07:00"), (" 23:59 ", "23:59")])
def test_a_clock_time_is_of_24_hours(text: str, clock: str) -> None:
    assert parse_clock(text) == clock


@pytest.mark.parametrize("text", ["24:00", "7", "7:60", "7am", "07:00:00", 700, 420, True])
def test_what_is_no_clock_time_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="07:00"):
        parse_clock(text)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")  # Berlin's rule, without a time zone database
    time.tzset()
    yield
    monkeypatch.undo()
    assert os.environ.get("TZ") == before
    time.tzset()


@pytest.mark.parametrize(
    ("now", "then"),
    [
        # In the evening, the next morning; past midnight, the same one; on the minute, the next day's.
        (datetime(2026, 11, 21, 20, tzinfo=UTC), datetime(2026, 11, 22, 6, tzinfo=UTC)),
        (datetime(2026, 11, 21, 23, 30, tzinfo=UTC), datetime(2026, 11, 22, 6, tzinfo=UTC)),
        (datetime(2026, 11, 22, 6, tzinfo=UTC), datetime(2026, 11, 23, 6, tzinfo=UTC)),
        # The night of the 25th of October has an hour more.
        (datetime(2026, 10, 24, 20, tzinfo=UTC), datetime(2026, 10, 25, 6, tzinfo=UTC)),
        (datetime(2026, 10, 23, 20, tzinfo=UTC), datetime(2026, 10, 24, 5, tzinfo=UTC)),
    ],
)
def test_the_next_seven_o_clock_is_what_the_wall_shows(berlin: None, now: datetime, then: datetime) -> None:
    assert find_next("07:00", now) == then


def test_a_job_takes_them_and_gives_them_back_as_json() -> None:
    said = {
        "input": {"path": "a", "limit": "1.5M"},
        "model": {"max_model_len": "32K"},
        "sampling": {"max_tokens": "2K"},
        "deadline": "7h30m",
        "stop_at": "7:00",
        "max_failures": "1%",
        "notify": "json://host",
    }
    job = Job.model_validate(said)
    assert (job.input.limit, job.model.max_model_len, job.sampling.max_tokens) == (1_500_000, 32_768, 2048)
    assert (job.deadline, job.stop_at, job.max_failures) == (27_000, "07:00", Share(1))
    assert job.notify == ("json://host",)
    assert job.model_dump(mode="json")["max_failures"] == "1%"
    assert Job.model_validate(job.model_dump(mode="json")) == job


@pytest.mark.parametrize(
    "change", [{"deadline": 0}, {"deadline": "-5m"}, {"metrics_port": 0}, {"notify": ""}, {"stop_at": 700}]
)
def test_a_job_refuses_what_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate({"input": {"path": "a"}, **change})
