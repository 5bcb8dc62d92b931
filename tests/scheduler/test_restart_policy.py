"""Restarts, giving up and the watchdog, on a clock of the test's own."""

from synthia_batch.scheduler.restart_policy import MOST_HALVINGS, STRIKES, STUCK_LOADS, RestartPolicy
from synthia_batch.workers.engine import Reduction


def make_policy(watchdog_seconds: float = 10) -> RestartPolicy:
    policy = RestartPolicy(watchdog_seconds, load_timeout_seconds=1000)
    policy.register(0)
    policy.mark_ready(0, 1, now=0)
    return policy


def test_each_death_without_a_sample_between_makes_the_pause_longer_and_then_it_ends() -> None:
    policy = make_policy()
    pauses = [policy.mark_dead(0, epoch, is_strike=True, now=0) for epoch in range(1, STRIKES + 2)]
    assert pauses[-1] is None
    waits = [pause for pause in pauses if pause is not None]
    assert waits[0] < 0.5
    assert waits == sorted(waits)
    assert len(waits) == STRIKES
    assert policy.live_workers == 0


def test_a_sample_made_forgives_what_went_before() -> None:
    policy = make_policy()
    for epoch in range(1, 10 * STRIKES):
        assert policy.mark_dead(0, epoch, is_strike=True, now=0) is not None
        policy.mark_ready(0, epoch + 1, now=0)
        policy.clear_strikes(0)


def test_deaths_of_a_search_are_no_strikes() -> None:
    policy = make_policy()
    pauses = {policy.mark_dead(0, epoch, is_strike=False, now=0) for epoch in range(1, 100)}
    assert None not in pauses
    assert len(pauses) == 1


def test_a_pause_ends_once() -> None:
    policy = make_policy()
    pause = policy.mark_dead(0, 1, is_strike=True, now=100)
    assert pause is not None
    assert policy.take_due(100 + pause / 2) == []
    assert policy.take_due(100 + pause) == [0]
    assert policy.take_due(100 + pause) == []


def test_an_engine_that_holds_samples_and_does_not_step_is_hung() -> None:
    policy = make_policy(watchdog_seconds=10)
    policy.note_steps(0, 5, now=1)
    assert policy.find_hung({0}, now=10.9) == []
    assert policy.find_hung({0}, now=11) == [(0, 1)]
    policy.note_steps(0, 6, now=12)
    assert policy.find_hung({0}, now=21) == []
    policy.note_steps(0, 6, now=21)
    assert policy.find_hung({0}, now=22) == [(0, 1)], "the same number of steps is no progress"


def test_an_idle_engine_is_not_hung_and_is_given_its_time_once_it_has_work() -> None:
    policy = make_policy(watchdog_seconds=10)
    assert policy.find_hung(set(), now=100) == []
    assert policy.find_hung({0}, now=105) == []
    assert policy.find_hung({0}, now=110) == [(0, 1)]


def test_messages_from_the_dead_are_known_as_such() -> None:
    policy = make_policy()
    assert policy.is_current(0, 1)
    policy.mark_dead(0, 1, is_strike=True, now=0)
    assert not policy.is_current(0, 1)
    assert not policy.is_news(0, 1)
    assert policy.is_news(0, 2)


def test_a_batch_is_halved_only_so_often() -> None:
    policy = make_policy()
    assert [policy.reduce(0) for _ in range(MOST_HALVINGS + 1)] == [True] * MOST_HALVINGS + [False]
    assert policy.get_reduction(0).batch_halvings == MOST_HALVINGS


def test_an_engine_too_large_for_the_memory_is_loaded_three_times_at_most() -> None:
    policy = RestartPolicy(watchdog_seconds=100)
    policy.register(0)
    assert [policy.reduce(0) for _ in range(3)] == [True, True, False]
    assert policy.get_reduction(0) == Reduction(load_failures=2)


def test_the_batch_is_halved_from_the_one_that_the_engine_really_had() -> None:
    policy = RestartPolicy(watchdog_seconds=100)
    policy.register(0)
    policy.mark_ready(0, 1, 0, max_num_seqs=1024)
    policy.reduce(0)
    policy.mark_dead(0, 1, is_strike=False, now=0)
    policy.mark_ready(0, 2, 1, max_num_seqs=512)
    policy.reduce(0)
    assert policy.get_reduction(0) == Reduction(batch_halvings=2, max_num_seqs=1024)


def test_an_engine_that_dies_twice_while_loading_may_be_short_of_memory() -> None:
    policy = make_policy()
    told = []
    for epoch in range(1, 4):  # It was ready, then it dies twice while loading.
        told.append(policy.fails_to_load(0))
        policy.mark_dead(0, epoch, is_strike=True, now=0)
    assert told == [False, False, True]
    policy.mark_ready(0, 4, now=0)
    assert not policy.fails_to_load(0)


def test_an_engine_that_does_not_load_in_time_is_stuck_however_long_it_waited_for_room() -> None:
    policy = make_policy()
    policy.mark_dead(0, 1, is_strike=True, now=0)
    assert policy.find_stuck_loads(now=5000) == [], "it has no room yet"
    policy.mark_loading(0, 2, now=5000)
    assert policy.find_stuck_loads(now=5999) == []
    assert policy.find_stuck_loads(now=6000) == [(0, 2)]
    policy.mark_ready(0, 2, now=6000)
    assert policy.find_stuck_loads(now=9000) == []


def test_a_worker_is_given_up_after_two_stuck_loads_in_a_row() -> None:
    policy = make_policy()
    told = []
    for epoch in range(1, STUCK_LOADS + 1):
        policy.mark_loading(0, epoch, now=0)
        told.append(policy.mark_dead(0, epoch, is_strike=True, now=1000))
    assert [pause is None for pause in told] == [False, True]


def test_a_load_that_succeeds_forgives_a_stuck_one() -> None:
    policy = make_policy()
    for epoch in range(1, 11, 2):
        policy.mark_loading(0, epoch, now=0)
        assert policy.mark_dead(0, epoch, is_strike=True, now=1000) is not None
        policy.mark_loading(0, epoch + 1, now=0)
        policy.mark_ready(0, epoch + 1, now=0)
        policy.clear_strikes(0)


def test_a_death_while_loading_is_no_stuck_load() -> None:
    policy = make_policy()
    for epoch in range(1, STUCK_LOADS + 2):
        policy.mark_loading(0, epoch, now=0)
        assert policy.mark_dead(0, epoch, is_strike=True, now=999) is not None
