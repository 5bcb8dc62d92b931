"""Whole runs in a simulated world: 2,000 seeds, the same ones each time."""

import dataclasses

import pytest

from simulation.faults import Violation
from simulation.schedule import ENDINGS, Attempt, Schedule, Weather, draw_schedule
from simulation.shrink import shrink
from simulation.simulate import Simulator, open_simulator

SEEDS = 2000


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    with open_simulator() as opened:
        yield opened


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("first", range(0, SEEDS, 250))
def test_every_invariant_holds_in_every_schedule(simulator: Simulator, first: int) -> None:
    found = {seed: simulator.run(draw_schedule(seed)) for seed in range(first, first + 250)}
    assert {seed: str(violation) for seed, violation in found.items() if violation} == {}


def test_a_seed_has_one_schedule_and_seeds_have_all_kinds() -> None:
    schedules = [draw_schedule(seed) for seed in range(SEEDS)]
    assert schedules[:50] == [draw_schedule(seed) for seed in range(50)]
    attempts = [attempt for schedule in schedules for attempt in schedule.attempts]
    assert {attempt.ending for attempt in attempts} == set(ENDINGS)
    assert {attempt.kind for attempt in attempts} == {"run", "subset", "retry"}
    for field in dataclasses.fields(Weather):
        assert sum(getattr(attempt.weather, field.name) > 0 for attempt in attempts) > 20, field.name
    assert sum(bool(schedule.shape.fatal) for schedule in schedules) > 100
    assert sum(bool(schedule.shape.turns) for schedule in schedules) > 100


def test_a_failing_schedule_shrinks_to_what_makes_it_fail() -> None:
    def run(schedule: Schedule) -> Violation | None:
        is_bad = any(attempt.ending == "kill" and attempt.weather.late for attempt in schedule.attempts)
        return Violation("some_invariant", "x") if is_bad else None

    def is_fit(attempt: Attempt) -> bool:
        return attempt.ending == "kill" and attempt.weather.late > 0

    fitting = (draw_schedule(seed) for seed in range(10_000))
    smallest = shrink(next(s for s in fitting if any(map(is_fit, s.attempts)) and len(s.attempts) > 1), run)
    (attempt,) = smallest.attempts
    assert smallest.shape.total == 1
    assert attempt.weather == Weather(late=attempt.weather.late)
    assert attempt.workers == 1
