"""Makes a failing schedule smaller: fewer attempts, less weather, fewer rows, as long as it fails alike."""

import dataclasses
from collections.abc import Callable, Iterator

from simulation.faults import Violation
from simulation.schedule import Attempt, Schedule, Shape, Weather

MOST_TRIES = 400


def shrink(schedule: Schedule, run: Callable[[Schedule], Violation | None]) -> Schedule:
    """Return the smallest schedule found that violates the same invariant as `schedule`."""
    found = run(schedule)
    if found is None:
        return schedule
    tries = 0
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for smaller in list_smaller(schedule):
            tries += 1
            if tries > MOST_TRIES:
                return schedule
            again = run(smaller)
            if again is not None and again.name == found.name:
                schedule, is_smaller = smaller, True
                break
    return schedule


def list_smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Yield schedules that lack one thing of `schedule` each, the largest things first."""
    attempts = schedule.attempts
    for number in range(len(attempts)):
        yield dataclasses.replace(schedule, attempts=attempts[:number] + attempts[number + 1 :])
    for shape in _list_smaller_shapes(schedule.shape):
        yield dataclasses.replace(schedule, shape=shape)
    for number, attempt in enumerate(attempts):
        for simpler in _list_simpler(attempt):
            yield dataclasses.replace(
                schedule, attempts=(*attempts[:number], simpler, *attempts[number + 1 :])
            )


def _list_smaller_shapes(shape: Shape) -> Iterator[Shape]:
    for name in ("systems", "samples", "rows"):
        if getattr(shape, name) > 1:
            smaller = dataclasses.replace(shape, **{name: getattr(shape, name) - 1})
            fatal = frozenset(ordinal for ordinal in shape.fatal if ordinal < smaller.total)
            bad_row = shape.bad_row if shape.bad_row is not None and shape.bad_row < smaller.rows else None
            yield dataclasses.replace(smaller, fatal=fatal, bad_row=bad_row)
    if shape.turns:
        yield dataclasses.replace(shape, turns=0)
    if shape.candidates:
        yield dataclasses.replace(shape, candidates=0)
    if shape.flags:
        yield dataclasses.replace(shape, flags=(), drops=False)
    if shape.fatal:
        yield dataclasses.replace(shape, fatal=frozenset())
    if shape.bad_row is not None:
        yield dataclasses.replace(shape, bad_row=None)


def _list_simpler(attempt: Attempt) -> Iterator[Attempt]:
    for field in dataclasses.fields(Weather):
        if getattr(attempt.weather, field.name):
            yield dataclasses.replace(
                attempt, weather=dataclasses.replace(attempt.weather, **{field.name: 0.0})
            )
    if attempt.ending != "none":
        yield dataclasses.replace(attempt, ending="none", at=0)
    if attempt.intruder_at is not None:
        yield dataclasses.replace(attempt, intruder_at=None)
    if attempt.reader_at is not None:
        yield dataclasses.replace(attempt, reader_at=None)
    if attempt.workers > 1:
        yield dataclasses.replace(attempt, workers=1)
