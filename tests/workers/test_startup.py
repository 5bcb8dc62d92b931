"""A pool that starts beside other work."""

import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import write_jsonl
from test_engine_environment import SPEC

from synthia_batch import Job, run_job
from synthia_batch.core.shutdown import DrainRequest
from synthia_batch.core.types import Failed, Request
from synthia_batch.errors import PoolFailed, UsageError
from synthia_batch.inputs.base import PROGRESS_ROWS
from synthia_batch.inputs.readers.jsonl import JsonlSource
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.job.sections import EngineKind
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.driver import Driver
from synthia_batch.workers.engine import NO_REDUCTION, EngineFacts, Reduction
from synthia_batch.workers.pools.base import (
    PoolEvent,
    SamplesEnded,
    WorkerAdded,
    WorkerLost,
    WorkerReady,
    WorkerSpec,
)
from synthia_batch.workers.pools.local import LocalPool
from synthia_batch.workers.pools.startup import GRACE_SECONDS, PoolStarter, StartedPool
from synthia_batch.workers.worker import Worker


@dataclass
class WaitingPool:
    """Tells the same once, when it is first asked."""

    events: list[PoolEvent] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    error: Exception | None = None
    polled: threading.Event = field(default_factory=threading.Event)
    size: int = 1
    unplaced: int = 0

    def start(self) -> None:
        self.calls.append("start")
        if self.error is not None:
            raise self.error

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        told, self.events = self.events, []
        self.polled.wait(0 if told else timeout_seconds)
        if not told:
            self.polled.set()
        return told

    def stop(self, at_once: bool = False) -> None:
        self.calls.append("stop at once" if at_once else "stop")

    def restart(self, worker: int, reduction: Reduction = NO_REDUCTION) -> None: ...
    def kill(self, worker: int) -> None: ...
    def feed(self, worker: int, requests: Sequence[object]) -> None: ...
    def abort(self) -> None: ...


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_pool_starts_once_the_input_was_sound_for_a_while() -> None:
    pool, clock = WaitingPool(), Clock()
    with PoolStarter(lambda: pool, clock) as starter:
        starter.note_scan()
        assert pool.calls == []
        clock.now = GRACE_SECONDS
        starter.note_scan()
        starter.note_scan()
        assert starter.take_over().pool is pool
    assert pool.calls == ["start", "stop"]


def test_what_a_starting_pool_has_told_is_handed_over_with_it() -> None:
    pool = WaitingPool(events=[WorkerAdded(worker=1)])
    with PoolStarter(lambda: pool) as starter:
        starter.begin()
        assert pool.polled.wait(10), "the pool must be polled before it is wanted"
        assert list(starter.take_over().events) == [WorkerAdded(worker=1)]


def test_a_pool_that_was_never_wanted_is_never_made() -> None:
    def refuse() -> WaitingPool:
        raise AssertionError("nobody asked for a pool")

    with PoolStarter(refuse):
        pass


def test_a_pool_that_cannot_start_ends_the_scan_and_is_told_to_whoever_wants_it() -> None:
    pool = WaitingPool(error=PoolFailed("no room"))
    with PoolStarter(lambda: pool) as starter:
        starter.begin()
        with pytest.raises(PoolFailed, match="no room"):
            starter.take_over()
        with pytest.raises(PoolFailed, match="no room"):
            starter.note_scan()
    assert pool.calls == ["start", "stop"], "it may have started a part of what it needs"


def test_an_engine_that_refuses_its_settings_ends_the_scan() -> None:
    lost = WorkerLost(worker=0, epoch=1, reason="no", refused=UsageError("engine.x: no such setting"))
    pool = WaitingPool(events=[lost])
    with PoolStarter(lambda: pool) as starter:
        starter.begin()
        assert pool.polled.wait(10)
        with pytest.raises(UsageError, match="no such setting"):
            starter.note_scan()


def test_a_second_interrupt_stops_the_pool_at_once() -> None:
    pool = WaitingPool()
    starter = PoolStarter(lambda: pool)
    starter.take_over()
    starter.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert pool.calls == ["start", "stop at once"]


def test_the_thread_that_started_the_pool_lives_until_it_has_stopped() -> None:
    """Linux ends a local Ray's processes with the thread that started them."""
    pool = WaitingPool()
    with PoolStarter(lambda: pool) as starter:
        starter.take_over()
        assert "pool-start" in {thread.name for thread in threading.enumerate()}
    assert "pool-start" not in {thread.name for thread in threading.enumerate()}


def test_engines_load_while_a_long_input_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question": "?"}] * (PROGRESS_ROWS + 1))
    scan, loading = JsonlSource.scan, []

    def scan_and_look(source: JsonlSource, *arguments: Any) -> Any:
        result = scan(source, *arguments)
        loading.append("pool-start" in {thread.name for thread in threading.enumerate()})
        return result

    monkeypatch.setattr(JsonlSource, "scan", scan_and_look)
    monkeypatch.setattr("synthia_batch.workers.pools.startup.GRACE_SECONDS", 0.0)
    job = Job(
        input={"path": questions},
        engine={"kind": "scripted"},
        pool={"kind": "local"},
        output=tmp_path / "out",
    )
    assert run_job(job).finished == PROGRESS_ROWS + 1
    assert loading == [True]


@dataclass
class AnsweringPool(WaitingPool):
    """Ends each sample that it is fed."""

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        self.calls.append("poll")
        return super().poll(timeout_seconds)

    def feed(self, worker: int, requests: Sequence[Any]) -> None:
        self.calls.append("feed")
        outcomes = tuple(Failed(ordinal=request.ordinal, code="x", message="x") for request in requests)
        self.events = [SamplesEnded(worker=worker, epoch=1, outcomes=outcomes)]


def test_a_worker_that_is_ready_at_the_takeover_is_fed_before_anything_is_waited_for(tmp_path: Path) -> None:
    pool = AnsweringPool()
    facts = EngineFacts(engine="scripted", version="1", device="none", capacity=4, max_model_len=100)
    ready = WorkerReady(worker=0, epoch=1, facts=facts, canary=None)
    driver = Driver(
        sink=Mock(),
        drain=DrainRequest(),
        check_canary=lambda ready: None,
        watchdog_seconds=300,
        log_path=lambda index: tmp_path / "log",
    )
    requests = iter([Request(ordinal=0, token_ids=b"x", seed=0)])
    assert driver.run(Dispatcher(requests, 1), lambda: StartedPool(pool=pool, events=[ready])) is None
    assert pool.calls == ["feed", "poll"]


def test_a_local_pool_may_be_stopped_while_a_worker_is_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails while engines load ends the run at any moment of their start."""
    engine = dataclasses.replace(SPEC, kind="scripted")
    worker_spec = WorkerSpec(engine=engine, canaries=(), log_path=lambda worker: tmp_path / "log")
    spec = PoolSpec(kind="local", workers=1, ray_address=None, watchdog_seconds=9, load_timeout_seconds=9)
    pool, start, is_stopped = LocalPool(spec, worker_spec), Worker.start, threading.Event()

    def stop_then_start(worker: Worker) -> None:
        pool.stop()
        start(worker)
        is_stopped.set()

    monkeypatch.setattr(Worker, "start", stop_then_start)
    pool.start()
    assert is_stopped.wait(30), "the pool cannot be stopped before its worker has started"


FACTS = EngineFacts(engine="x", version="1", device="d", capacity=4, max_model_len=100)


@dataclass
class ClosableEngine:
    """An engine that only tells whether it was closed."""

    is_closed: threading.Event = field(default_factory=threading.Event)
    facts: EngineFacts = FACTS
    cached_prompt_tokens: int = 0

    def abort(self) -> None:
        """It has no requests."""

    def adopt(self, spec: object) -> None:
        """It answers nothing."""

    def close(self) -> None:
        self.is_closed.set()


def open_local_pool(directory: Path, kind: EngineKind = "scripted") -> LocalPool:
    engine = dataclasses.replace(SPEC, kind=kind)
    worker_spec = WorkerSpec(engine=engine, canaries=None, log_path=lambda worker: directory / "log")
    spec = PoolSpec(kind="local", workers=1, ray_address=None, watchdog_seconds=9, load_timeout_seconds=9)
    return LocalPool(spec, worker_spec)


def test_a_local_pool_closes_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are threads of a process that goes on: its end does not give back what they hold."""
    engine = ClosableEngine()
    monkeypatch.setattr("synthia_batch.workers.pools.local.load_engine", lambda spec, placement: engine)
    pool = open_local_pool(tmp_path)
    pool.start()
    events: list[PoolEvent] = []
    while not any(isinstance(event, WorkerReady) for event in events):
        events += pool.poll(5)
    assert not engine.is_closed.is_set()
    pool.stop()
    assert engine.is_closed.wait(5)


def test_an_engine_that_has_loaded_after_it_was_given_up_is_closed_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [ClosableEngine(), ClosableEngine()]
    goes_on = [threading.Event(), threading.Event()]
    begun = threading.Event()

    def load(spec: object, placement: object) -> ClosableEngine:
        number = int(begun.is_set())
        begun.set()
        assert goes_on[number].wait(5)
        return engines[number]

    monkeypatch.setattr("synthia_batch.workers.pools.local.load_engine", load)
    pool = open_local_pool(tmp_path)
    pool.start()
    assert begun.wait(5)
    pool.kill(0)
    pool.restart(0)
    goes_on[0].set()
    assert engines[0].is_closed.wait(5)
    goes_on[1].set()
    events: list[PoolEvent] = []
    while not any(isinstance(event, WorkerReady) for event in events):
        events += pool.poll(5)
    assert [event.epoch for event in events if isinstance(event, WorkerReady)] == [2]
    assert not engines[1].is_closed.is_set()
    pool.stop()


def test_renewing_a_local_pool_waits_for_no_load_and_uses_no_engine_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, goes_on, loads = [ClosableEngine(), ClosableEngine()], threading.Event(), []

    def load(spec: object, placement: object) -> ClosableEngine:
        loads.append(spec)
        assert goes_on.wait(5)
        return engines[len(loads) - 1]

    monkeypatch.setattr("synthia_batch.workers.pools.local.load_engine", load)
    pool = open_local_pool(tmp_path, kind="vllm")
    monkeypatch.setattr("synthia_batch.workers.pools.local._send_logs_to", lambda path: None)
    pool.start()
    pool.renew(pool._worker_spec)
    goes_on.set()
    assert wait_for_ready(pool).epoch == 3
    assert [engine.is_closed.is_set() for engine in engines] == [True, False], "a process holds one of vLLM's"
    pool.stop()


def test_a_worker_that_was_lost_is_started_by_a_renewal_and_its_death_is_no_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(ClosableEngine):
        def abort(self) -> None:
            raise RuntimeError("the device is gone")

    engines: list[ClosableEngine] = [Dying(), ClosableEngine()]
    load = lambda spec, placement: engines.pop(0)  # noqa: E731
    monkeypatch.setattr("synthia_batch.workers.pools.local.load_engine", load)
    pool = open_local_pool(tmp_path)
    pool.start()
    ready = wait_for_ready(pool)
    pool.abort()
    deadline = time.monotonic() + 10
    while pool._workers[0].collect(0, ready.epoch).error is None:
        assert time.monotonic() < deadline
    pool.renew(pool._worker_spec)
    events: list[PoolEvent] = []
    while not any(isinstance(event, WorkerLost) for event in events):
        events += pool.poll(5)
    assert {event.epoch for event in events if isinstance(event, WorkerLost)} == {3}, (
        "not of the epoch before"
    )
    pool.restart(0)
    assert wait_for_ready(pool).epoch == 4
    pool.stop()


def wait_for_ready(pool: LocalPool) -> WorkerReady:
    while True:
        for event in pool.poll(5):
            if isinstance(event, WorkerReady):
                return event
