"""A pool on a simulated clock: engines that only take time, and die or refuse to load on demand."""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from synthia_batch.core.shutdown import DrainRequest
from synthia_batch.core.types import Failed, Finished, Outcome, Record, Request
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.driver import Driver
from synthia_batch.scheduler.multi_turn import Step, record_as_it_is
from synthia_batch.workers.engine import NO_REDUCTION, EngineFacts, Reduction
from synthia_batch.workers.pools.base import (
    PoolEvent,
    SamplesEnded,
    SamplesReturned,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    WorkerStepped,
)
from synthia_batch.workers.pools.startup import StartedPool

TICK = 0.05
CAPACITY = 16
LATER = 10.0
"""Seconds that a load takes that is not the first."""


def finish(request: Request) -> Finished:
    return Finished(
        ordinal=request.ordinal, response="", reasoning=None, finish_reason="stop",
        prompt_tokens=1, completion_tokens=1, turn=request.turn,
    )  # fmt: skip


@dataclass
class SimulatedEngine:
    """One start of a worker. `running` has the time at which each request ends."""

    epoch: int
    ready_at: float
    is_ready: bool = False
    steps: int = 0
    waiting: deque[Request] = field(default_factory=deque)
    running: dict[int, tuple[Request, float]] = field(default_factory=dict)


@dataclass
class SimulatedPool:
    """`kills(worker, request)`: this worker's engine dies with that request in its batch.

    `load(worker, start)` is what comes of a worker's start, counted from 0, instead of an engine.
    `places` is the batch of each worker, `seconds` what a request takes there.
    """

    size: int
    kills: Callable[[int, Request], bool] = lambda worker, request: False
    load: Callable[[int, int], WorkerLost | None] = lambda worker, start: None
    places: Sequence[int] = ()
    seconds: Sequence[float] = ()
    now: float = 0.0
    unplaced: int = 0
    killed: list[int] = field(default_factory=list)
    made: Counter[tuple[int, int]] = field(default_factory=Counter)
    deaths: int = 0
    recalls: int = 0
    engines: dict[int, SimulatedEngine] = field(default_factory=dict)
    _events: list[PoolEvent] = field(default_factory=list)
    _starts: Counter[int] = field(default_factory=Counter)
    _epochs: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def start(self) -> None:
        for worker in range(self.size):
            self.restart(worker)

    def restart(self, worker: int, reduction: Reduction = NO_REDUCTION) -> None:
        epoch, start = next(self._epochs), self._starts[worker]
        self._starts[worker] += 1
        self._events.append(WorkerLoading(worker=worker, epoch=epoch))
        if (lost := self.load(worker, start)) is not None:
            self._events.append(replace(lost, worker=worker, epoch=epoch))
            return
        self.engines[worker] = SimulatedEngine(epoch, self.now + (LATER if start else 0))

    def kill(self, worker: int) -> None:
        self.killed.append(worker)
        del self.engines[worker]

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        self.engines[worker].waiting.extend(requests)

    def recall(self, worker: int) -> None:
        """Give back at once what waits: a real worker does so before its next step."""
        self.recalls += 1
        engine = self.engines[worker]
        ordinals = tuple(request.ordinal for request in engine.waiting)
        engine.waiting.clear()
        self._events.append(SamplesReturned(worker=worker, epoch=engine.epoch, ordinals=ordinals))

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        end = self.now + timeout_seconds
        while not self._events and self.now < end:
            self.now += TICK
            for worker, engine in list(self.engines.items()):
                self._step(worker, engine)
        events, self._events = self._events, []
        return events

    def abort(self) -> None:
        self.engines.clear()

    def stop(self, at_once: bool = False) -> None:
        self.engines.clear()

    def _step(self, worker: int, engine: SimulatedEngine) -> None:
        if self.now < engine.ready_at:
            return
        if not engine.is_ready:
            engine.is_ready = True
            facts = EngineFacts(engine="x", version="1", device="d", capacity=CAPACITY, max_model_len=100)
            self._events.append(WorkerReady(worker=worker, epoch=engine.epoch, facts=facts, canary=None))
        places = self.places[worker] if self.places else CAPACITY
        while engine.waiting and len(engine.running) < places:
            request = engine.waiting.popleft()
            ends_at = self.now + (self.seconds[worker] if self.seconds else 1.0)
            engine.running[request.ordinal] = (request, ends_at)
        if not engine.running:
            return
        if any(self.kills(worker, request) for request, _ in engine.running.values()):
            del self.engines[worker]
            self.deaths += 1
            self._events.append(WorkerLost(worker=worker, epoch=engine.epoch, reason="it died"))
            return
        engine.steps += 1
        ended = [request for request, ends_at in engine.running.values() if ends_at <= self.now]
        for request in ended:
            del engine.running[request.ordinal]
            if request.ordinal >= 0:
                self.made[request.ordinal, request.turn] += 1
        self._events.append(WorkerStepped(worker=worker, epoch=engine.epoch, steps=engine.steps))
        if ended:
            outcomes = tuple(finish(request) for request in ended)
            self._events.append(SamplesEnded(worker=worker, epoch=engine.epoch, outcomes=outcomes))


@dataclass
class MemorySink:
    """A sink that remembers. `on_record` is called with each batch, as a slow disk would be."""

    finished: int = 0
    failed: int = 0
    codes: dict[int, str] = field(default_factory=dict)
    on_record: Callable[[Sequence[Record]], None] = lambda records: None

    def record(self, records: Sequence[Record]) -> None:
        self.on_record(records)
        for record in records:
            if isinstance(record, Failed):
                self.failed += 1
                self.codes[record.ordinal] = record.code
            else:
                self.finished += isinstance(record, Finished)

    def tick(self) -> None:
        """Nothing needs syncing."""


def drive(
    pool: SimulatedPool,
    sink: MemorySink,
    requests: Sequence[Request],
    advance: Callable[[Outcome], Step] = record_as_it_is,
    *,
    has_generated: bool = False,
) -> None:
    """Generate `requests` with the real driver."""
    driver = Driver(
        sink=sink,
        drain=DrainRequest(),
        check_canary=lambda ready: None,
        watchdog_seconds=300,
        load_timeout_seconds=3600,
        log_path=lambda worker: Path("nowhere"),
        advance=advance,
        clock=lambda: pool.now,
    )
    pool.start()
    dispatcher = Dispatcher(iter(requests), len(requests), has_generated=has_generated)
    driver.run(dispatcher, lambda: StartedPool(pool=pool))
