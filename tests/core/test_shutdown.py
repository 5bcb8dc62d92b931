"""Stopping on request."""

import os
import signal
import threading

import pytest

from synthia_batch.core.shutdown import DrainReason, DrainRequest


def test_nothing_asked_is_no_reason() -> None:
    assert DrainRequest().reason is None


def test_a_deadline_counts_from_the_start() -> None:
    now = 100.0
    request = DrainRequest(5.0, clock=lambda: now)
    now = 104.9
    assert request.reason is None
    now = 105.0
    assert request.reason is DrainReason.DEADLINE


def test_the_first_reason_stays() -> None:
    request = DrainRequest()
    request.ask(DrainReason.TERMINATE)
    request.ask(DrainReason.FAILURES)
    assert request.reason is DrainReason.TERMINATE
    with pytest.raises(KeyboardInterrupt):
        request.ask(DrainReason.INTERRUPT)


def test_signals_ask_and_a_second_interrupt_stops_at_once() -> None:
    request = DrainRequest()
    before = signal.getsignal(signal.SIGINT)
    with request.listen():
        os.kill(os.getpid(), signal.SIGINT)
        assert request.reason is DrainReason.INTERRUPT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    during = []

    def listen() -> None:
        with DrainRequest().listen():
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert during == [before]


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGTERM, DrainReason.TERMINATE), (signal.SIGHUP, DrainReason.HANGUP)]
)
def test_the_end_of_a_session_asks_as_the_end_of_a_machine_does(
    number: signal.Signals, reason: DrainReason
) -> None:
    now = 10.0
    request = DrainRequest(clock=lambda: now)
    assert request.signalled_seconds == 0
    with request.listen():
        os.kill(os.getpid(), number)
    now = 13.0
    assert (request.reason, request.signalled_seconds) == (reason, 3.0)
    assert reason.exit_code == 75


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        request = DrainRequest()
        with request.listen():
            os.kill(os.getpid(), signal.SIGHUP)
        assert request.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_asks_also_where_the_shell_had_it_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # As in what a script starts with `&`.
    try:
        request = DrainRequest()
        with request.listen():
            os.kill(os.getpid(), signal.SIGINT)
        assert request.reason is DrainReason.INTERRUPT
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
