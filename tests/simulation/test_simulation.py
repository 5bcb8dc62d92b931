"""Whole runs in a simulated world: the same seeds each time, in processes of their own."""

import dataclasses
import subprocess
import sys

import pytest
from conftest import ROOT, make_environment

from simulation.faults import Violation
from simulation.schedule import ENDINGS, Attempt, Schedule, Weather, draw_schedule
from simulation.shrink import shrink

SEEDS = 2000
PLANTED = """
import runpy, sys
from synthia_batch.scheduler import crash_bisection
crash_bisection.DEATHS_ALONE = 1
sys.argv = ["simulation", "--seeds", "0..50", "--stop"]
runpy.run_module("tests.simulation", run_name="__main__")
"""


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not in this process: the simulator comes between it and the system.
    environment = make_environment(PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("first", "last"), [(0, SEEDS // 2), (SEEDS // 2, SEEDS)])
def test_every_invariant_holds_in_every_schedule(first: int, last: int) -> None:
    done = call("-m", "tests.simulation", "--seeds", f"{first}..{last}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{last - first} schedules, 0 violations, ")


@pytest.mark.timeout(600)
def test_a_planted_fault_is_found_and_its_seed_printed() -> None:
    """Innocent samples are blamed after one death with them alone."""
    done = call("-c", PLANTED)
    assert done.returncode == 1, done.stderr
    assert "published_files_are_final" in done.stdout
    assert "replay: make simulate SEEDS=" in done.stdout
    assert "smallest: Schedule(" in done.stdout


def test_a_seed_has_one_schedule_and_seeds_have_all_kinds() -> None:
    schedules = [draw_schedule(seed) for seed in range(SEEDS)]
    assert schedules[:50] == [draw_schedule(seed) for seed in range(50)]
    attempts = [attempt for schedule in schedules for attempt in schedule.attempts]
    assert {attempt.ending for attempt in attempts} == set(ENDINGS)
    assert {attempt.kind for attempt in attempts} == {"run", "subset", "retry"}
    for field in dataclasses.fields(Weather):
        assert sum(getattr(attempt.weather, field.name) > 0 for attempt in attempts) > 20, field.name
    for what in ("fatal", "turns", "is_remote", "flags", "candidates", "has_parquet"):
        assert sum(bool(getattr(schedule.shape, what)) for schedule in schedules) > 100, what
    assert sum(attempt.loses_machine for attempt in attempts) > 20


def test_a_failing_schedule_shrinks_to_what_makes_it_fail() -> None:
    def run(schedule: Schedule) -> Violation | None:
        return Violation("some_invariant", "x") if any(map(is_fit, schedule.attempts)) else None

    def is_fit(attempt: Attempt) -> bool:
        return attempt.ending == "kill" and attempt.weather.late > 0

    drawn = map(draw_schedule, range(10_000))
    smallest = shrink(next(s for s in drawn if run(s) and len(s.attempts) > 1), run)
    (attempt,) = smallest.attempts
    assert smallest.shape.total == 1
    assert attempt.weather == Weather(late=attempt.weather.late)
    assert attempt.workers == 1
