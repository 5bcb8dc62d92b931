"""Restarts, giving up and the watchdog, on a clock of the test's own."""

from synthia_batch.scheduler.restart_policy import MOST_HALVINGS, STRIKES, STUCK_LOADS, Supervisor


def make_supervisor(watchdog_seconds: float = 10) -> Supervisor:
    supervisor = Supervisor(watchdog_seconds, load_timeout_seconds=1000)
    supervisor.enlist(0)
    supervisor.welcome(0, 1, now=0)
    return supervisor


def test_each_death_without_a_sample_between_makes_the_pause_longer_and_then_it_ends() -> None:
    supervisor = make_supervisor()
    pauses = [supervisor.bury(0, epoch, is_strike=True, now=0) for epoch in range(1, STRIKES + 2)]
    assert pauses[-1] is None
    waits = [pause for pause in pauses if pause is not None]
    assert waits[0] < 0.5
    assert waits == sorted(waits)
    assert len(waits) == STRIKES
    assert supervisor.staff == 0


def test_a_sample_made_forgives_what_went_before() -> None:
    supervisor = make_supervisor()
    for epoch in range(1, 10 * STRIKES):
        assert supervisor.bury(0, epoch, is_strike=True, now=0) is not None
        supervisor.welcome(0, epoch + 1, now=0)
        supervisor.note_made(0)


def test_deaths_of_a_search_are_no_strikes() -> None:
    supervisor = make_supervisor()
    pauses = {supervisor.bury(0, epoch, is_strike=False, now=0) for epoch in range(1, 100)}
    assert None not in pauses
    assert len(pauses) == 1


def test_a_pause_ends_once() -> None:
    supervisor = make_supervisor()
    pause = supervisor.bury(0, 1, is_strike=True, now=100)
    assert pause is not None
    assert supervisor.take_due(100 + pause / 2) == []
    assert supervisor.take_due(100 + pause) == [0]
    assert supervisor.take_due(100 + pause) == []


def test_an_engine_that_holds_samples_and_does_not_step_is_hung() -> None:
    supervisor = make_supervisor(watchdog_seconds=10)
    supervisor.note_steps(0, 5, now=1)
    assert supervisor.find_hung({0}, now=10.9) == []
    assert supervisor.find_hung({0}, now=11) == [(0, 1)]
    supervisor.note_steps(0, 6, now=12)
    assert supervisor.find_hung({0}, now=21) == []
    supervisor.note_steps(0, 6, now=21)
    assert supervisor.find_hung({0}, now=22) == [(0, 1)], "the same number of steps is no progress"


def test_an_idle_engine_is_not_hung_and_is_given_its_time_once_it_has_work() -> None:
    supervisor = make_supervisor(watchdog_seconds=10)
    assert supervisor.find_hung(set(), now=100) == []
    assert supervisor.find_hung({0}, now=105) == []
    assert supervisor.find_hung({0}, now=110) == [(0, 1)]


def test_messages_from_the_dead_are_known_as_such() -> None:
    supervisor = make_supervisor()
    assert supervisor.believes(0, 1)
    supervisor.bury(0, 1, is_strike=True, now=0)
    assert not supervisor.believes(0, 1)
    assert not supervisor.is_news(0, 1)
    assert supervisor.is_news(0, 2)


def test_memory_is_halved_only_so_often() -> None:
    supervisor = make_supervisor()
    assert [supervisor.halve(0) for _ in range(MOST_HALVINGS + 1)] == [True] * MOST_HALVINGS + [False]
    assert supervisor.count_halvings(0) == MOST_HALVINGS


def test_an_engine_that_dies_twice_while_loading_may_be_short_of_memory() -> None:
    supervisor = make_supervisor()
    told = []
    for epoch in range(1, 4):  # It was ready, then it dies twice while loading.
        told.append(supervisor.fails_to_load(0))
        supervisor.bury(0, epoch, is_strike=True, now=0)
    assert told == [False, False, True]
    supervisor.welcome(0, 4, now=0)
    assert not supervisor.fails_to_load(0)


def test_an_engine_that_does_not_load_in_time_is_stuck_however_long_it_waited_for_room() -> None:
    supervisor = make_supervisor()
    supervisor.bury(0, 1, is_strike=True, now=0)
    assert supervisor.find_stuck_loads(now=5000) == [], "it has no room yet"
    supervisor.note_loading(0, 2, now=5000)
    assert supervisor.find_stuck_loads(now=5999) == []
    assert supervisor.find_stuck_loads(now=6000) == [(0, 2)]
    supervisor.welcome(0, 2, now=6000)
    assert supervisor.find_stuck_loads(now=9000) == []


def test_a_worker_is_given_up_after_two_stuck_loads_in_a_row() -> None:
    supervisor = make_supervisor()
    told = []
    for epoch in range(1, STUCK_LOADS + 1):
        supervisor.note_loading(0, epoch, now=0)
        told.append(supervisor.bury(0, epoch, is_strike=True, now=1000))
    assert [pause is None for pause in told] == [False, True]


def test_a_load_that_succeeds_forgives_a_stuck_one() -> None:
    supervisor = make_supervisor()
    for epoch in range(1, 11, 2):
        supervisor.note_loading(0, epoch, now=0)
        assert supervisor.bury(0, epoch, is_strike=True, now=1000) is not None
        supervisor.note_loading(0, epoch + 1, now=0)
        supervisor.welcome(0, epoch + 1, now=0)
        supervisor.note_made(0)


def test_a_death_while_loading_is_no_stuck_load() -> None:
    supervisor = make_supervisor()
    for epoch in range(1, STUCK_LOADS + 2):
        supervisor.note_loading(0, epoch, now=0)
        assert supervisor.bury(0, epoch, is_strike=True, now=999) is not None
