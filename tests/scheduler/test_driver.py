"""Driver, supervisor and dispatcher together, on engines that only take time."""

from collections.abc import Sequence

import pytest
from simulated_pool import MemorySink, SimulatedPool, drive

from synthia_batch.core.types import Finished, Outcome, Record, Request, Turn
from synthia_batch.errors import DeterminismBroken, PoolFailed, UsageError
from synthia_batch.scheduler.multi_turn import Step
from synthia_batch.workers.pools.base import Cause, PoolEvent, SamplesEnded, WorkerLost


def ask(count: int, longest_first: int = 0) -> list[Request]:
    """Samples of which the first `longest_first` have the longest prompts."""
    return [
        Request(ordinal=n, token_ids=b"x" * (50 if n < longest_first else 5), seed=n) for n in range(count)
    ]


def list_made(pool: SimulatedPool) -> list[int]:
    assert set(pool.made.values()) <= {1}, "nothing is made twice"
    return sorted(ordinal for ordinal, _ in pool.made)


@pytest.mark.parametrize(("samples", "workers"), [(4, 3), (16, 15), (5, 4), (7, 5), (1, 3), (3, 3), (100, 7)])
def test_no_sample_is_recalled_for_ever(samples: int, workers: int) -> None:
    """With four samples and three workers a share is two: the third has nothing, and recalls."""
    pool, sink = SimulatedPool(size=workers), MemorySink()
    drive(pool, sink, ask(samples))
    assert list_made(pool) == list(range(samples))
    assert pool.now <= 1.5 * -(-samples // (workers * 16)) + 1, "all of a batch at once"
    assert pool.recalls <= samples


@pytest.mark.parametrize("samples", [6, 9, 24, 30])
@pytest.mark.parametrize("slow", [(0, 1), (1, 2)])
def test_what_waits_for_one_place_in_a_slow_engine_goes_to_the_fast_one(
    samples: int, slow: tuple[int, int]
) -> None:
    places = [1 if worker == slow[0] else 16 for worker in range(3)]
    seconds = [100.0 if worker in slow else 1.0 for worker in range(3)]
    pool, sink = SimulatedPool(size=3, places=places, seconds=seconds), MemorySink()
    drive(pool, sink, ask(samples))
    assert list_made(pool) == list(range(samples))
    assert pool.now < 110, "nothing waits for a second round of the slow ones"


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("culprits", "samples"), [(5, 1000), (40, 1000), (7, 16), (10, 12)])
def test_any_number_of_neighbouring_culprits_is_quarantined_and_the_rest_generated(
    culprits: int, samples: int, workers: int
) -> None:
    """They have the longest prompts, so that an engine meets one after the other."""
    pool = SimulatedPool(size=workers, kills=lambda worker, request: 0 <= request.ordinal < culprits)
    sink = MemorySink()
    drive(pool, sink, ask(samples, longest_first=culprits))
    assert sink.codes == dict.fromkeys(range(culprits), "engine_crash")
    assert list_made(pool) == list(range(culprits, samples))


@pytest.mark.parametrize("workers", [1, 3])
def test_if_only_culprits_are_left_of_a_job_all_are_quarantined(workers: int) -> None:
    pool = SimulatedPool(size=workers, kills=lambda worker, request: request.ordinal >= 0)
    sink = MemorySink()
    drive(pool, sink, ask(12), has_generated=True)
    assert sink.codes == dict.fromkeys(range(12), "engine_crash")


@pytest.mark.parametrize("samples", [40, 400])
def test_a_job_whose_every_sample_crashes_engines_ends_and_quarantines_none(samples: int) -> None:
    pool = SimulatedPool(size=2, kills=lambda worker, request: request.ordinal >= 0)
    sink = MemorySink()
    with pytest.raises(PoolFailed, match="no worker is left"):
        drive(pool, sink, ask(samples))
    assert sink.codes == {}
    assert pool.deaths < 40


@pytest.mark.parametrize("samples", [1, 2, 5, 12, 40])
def test_a_worker_that_dies_of_everything_quarantines_nothing_beside_a_healthy_one(samples: int) -> None:
    pool = SimulatedPool(size=2, kills=lambda worker, request: worker == 1, seconds=[60.0, 60.0])
    sink = MemorySink()
    drive(pool, sink, ask(samples))
    assert sink.codes == {}
    assert list_made(pool) == list(range(samples))


def test_samples_quarantined_by_a_worker_whose_machine_is_lost_are_run_by_another() -> None:
    """It never comes back to show that it was not broken itself."""
    pool = SimulatedPool(size=2, seconds=[400.0, 1.0])
    pool.kills = lambda worker, request: worker == 1 and request.ordinal == 1
    pool.load = lambda worker, start: (
        WorkerLost(worker=1, epoch=0, reason="gone", cause=Cause.NODE_LOST)
        if worker == 1 and start >= 2
        else None
    )
    sink = MemorySink()
    drive(pool, sink, ask(2))
    assert sink.codes == {}
    assert list_made(pool) == [0, 1]


class DyingPool(SimulatedPool):
    """Its engine dies at the moment when it delivers its first turn."""

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        events = super().poll(timeout_seconds)
        if self.deaths or not any(isinstance(event, SamplesEnded) for event in events):
            return events
        self.deaths += 1
        lost = WorkerLost(worker=0, epoch=self.engines.pop(0).epoch, reason="it died")
        return [*events, lost]


def test_an_engine_that_dies_just_after_a_turn_is_not_sent_the_next() -> None:
    def go_on(outcome: Outcome) -> Step:
        assert isinstance(outcome, Finished)
        if outcome.turn:
            return Step(record=outcome, request=None)
        turn = Turn(
            ordinal=outcome.ordinal, number=0, response="", finish_reason="stop",
            prompt_tokens=1, completion_tokens=1,
        )  # fmt: skip
        return Step(record=turn, request=Request(ordinal=outcome.ordinal, token_ids=b"xx", seed=1, turn=1))

    pool, sink = DyingPool(size=1), MemorySink()
    drive(pool, sink, ask(3), advance=go_on)
    assert sink.finished == 3
    assert set(pool.made) == {(ordinal, turn) for ordinal in range(3) for turn in (0, 1)}


def test_a_disk_that_stands_still_makes_no_engine_look_hung() -> None:
    pool = SimulatedPool(size=2, seconds=[7.0, 1.0])
    stood_still = []

    def stand_still(records: Sequence[Record]) -> None:
        if not stood_still:
            stood_still.append(pool.now)
            pool.now += 400

    drive(pool, MemorySink(on_record=stand_still), ask(100))
    assert stood_still
    assert pool.killed == []
    assert list_made(pool) == list(range(100))


def refuse(error: Exception) -> WorkerLost:
    return WorkerLost(worker=0, epoch=0, reason=str(error), refused=error)


def test_a_worker_that_is_refused_for_its_own_want_of_memory_leaves_the_run_to_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "synthia_batch")
    short = WorkerLost(worker=1, epoch=0, reason="short", cause=Cause.OUT_OF_MEMORY)
    pool = SimulatedPool(size=2)
    pool.load = lambda worker, start: (
        [short, short, refuse(UsageError("too small\nsay more"))][min(start, 2)] if worker else None
    )
    sink = MemorySink()
    drive(pool, sink, ask(400))
    assert list_made(pool) == list(range(400))
    assert "worker 1 could not load its engine (too small) and starts again" in caplog.text


def test_an_engine_that_never_has_the_memory_to_load_ends_the_run_after_three_loads() -> None:
    short = WorkerLost(worker=0, epoch=0, reason="CUDA out of memory", cause=Cause.OUT_OF_MEMORY)
    starts: list[int] = []
    pool = SimulatedPool(size=1, load=lambda worker, start: starts.append(start) or short)
    sink = MemorySink()
    with pytest.raises(PoolFailed, match="CUDA out of memory"):
        drive(pool, sink, ask(4))
    assert starts == [0, 1, 2]
    assert list_made(pool) == []


def test_settings_that_no_engine_takes_end_the_run_at_once() -> None:
    pool = SimulatedPool(size=1, load=lambda worker, start: refuse(UsageError("no such setting")))
    with pytest.raises(UsageError, match="no such setting"):
        drive(pool, MemorySink(), ask(4))


def test_a_broken_canary_ends_the_run_even_where_others_work() -> None:
    pool = SimulatedPool(size=2)
    pool.load = lambda worker, start: refuse(DeterminismBroken("two answers")) if worker and start else None
    pool.kills = lambda worker, request: worker == 1
    with pytest.raises(DeterminismBroken, match="two answers"):
        drive(pool, MemorySink(), ask(400))


def test_the_last_worker_that_is_refused_its_start_says_why() -> None:
    pool = SimulatedPool(size=1, kills=lambda worker, request: True)
    pool.load = lambda worker, start: refuse(UsageError("the disk is gone")) if start else None
    with pytest.raises(PoolFailed, match="the disk is gone"):
        drive(pool, MemorySink(), ask(4))
