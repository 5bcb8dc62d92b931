"""Pauses between retries, with an injected clock and sleep."""

import pytest

from synthia_batch.core.backoff import Backoff, BackoffPolicy, parse_retry_after


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def make_backoff(clock: Clock, **limits: float) -> Backoff:
    policy = BackoffPolicy(**{"first_seconds": 0.5, "longest_seconds": 4.0, **limits})  # type: ignore[arg-type]
    return Backoff(policy, clock=clock, sleep=clock.sleep)


def test_pauses_double_up_to_the_longest() -> None:
    clock = Clock()
    backoff = make_backoff(clock)
    assert all(backoff.wait() for _ in range(6))
    assert clock.pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_very_many_failures_do_not_overflow() -> None:
    backoff = make_backoff(Clock())
    assert [backoff.next_pause() for _ in range(2000)][-1] == 4.0


def test_retries_are_limited_by_number_in_a_row() -> None:
    clock = Clock()
    backoff = make_backoff(clock, max_retries=2)
    assert backoff.wait()
    assert backoff.wait()
    backoff.reset()
    assert [backoff.wait() for _ in range(3)] == [True, True, False]
    assert backoff.failures == 3
    assert clock.pauses == [0.5, 1.0, 0.5, 1.0], "after progress the pauses start again"


def test_retries_are_limited_by_time_and_no_pause_crosses_the_limit() -> None:
    clock = Clock()
    backoff = make_backoff(clock, max_seconds=4.0)
    assert [backoff.wait() for _ in range(4)] == [True, True, True, False]
    assert clock.now == 103.5, "2 s more would end behind the limit: it gives up at once"


def test_the_server_asks_for_longer_pauses_within_a_limit() -> None:
    backoff = make_backoff(Clock(), longest_asked_seconds=60.0)
    assert backoff.next_pause(30.0) == 30.0
    assert backoff.next_pause(0.2) == 1.0, "not for shorter ones"
    assert backoff.next_pause(3600.0) == 60.0


def test_a_random_share_of_a_pause_leaves_what_the_server_asks_for() -> None:
    backoff = make_backoff(Clock(), least_share=0.5)
    pauses = [backoff.next_pause() for _ in range(20)][3:]
    assert all(pause is not None and 2.0 <= pause <= 4.0 for pause in pauses)
    assert len(set(pauses)) > 1
    assert backoff.next_pause(30.0) == 30.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("soon", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float) -> None:
    assert parse_retry_after(value, clock=lambda: 100.0) == seconds
