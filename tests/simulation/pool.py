"""A pool on a simulated clock, whose engines answer by hash, die, hang, and deliver late or never."""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from random import Random

from simulation.faults import Violation
from simulation.schedule import Attempt, Shape
from synthia_batch.core.types import Failed, Finished, Outcome, Request
from synthia_batch.workers.engine import NO_REDUCTION, EngineFacts, Reduction
from synthia_batch.workers.pools.base import (
    Cause,
    PoolEvent,
    SamplesEnded,
    SamplesReturned,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    WorkerStepped,
)

IDLE_SECONDS = 25.0
LATEST_SECONDS = 100.0
"""Of a message. Less than the watchdog waits for: an engine whose messages take longer counts as hung."""
LONGEST_SECONDS = 100_000.0
MOST_POLLS = 20_000
"""A run of a few samples that takes longer makes no progress."""
REFUSAL = "I'm sorry, but I can't help with that."
TRANSIENT = "server_error"


@dataclass
class Clock:
    """Seconds that pass only when the pool is waited for."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(request: Request) -> Outcome:
    """Return the outcome of `request`: a function of its prompt and seed."""
    key = b"%d " % request.seed + b",".join(b"%d" % token for token in request.token_ids)
    digest = blake2b(key, digest_size=16).digest()
    kind, ordinal = digest[0] % 16, request.ordinal
    if kind == 0:
        return Failed(ordinal=ordinal, code="engine_error", message="the engine refused it")
    text = {1: "", 2: REFUSAL, 3: "the same", 4: "line\nbreak \u2028 \U0001f600"}.get(kind, digest.hex())
    return Finished(
        ordinal=ordinal,
        response=text,
        reasoning=None,
        finish_reason="length" if digest[1] % 8 == 0 else "stop",
        prompt_tokens=len(request.token_ids),
        completion_tokens=1 + digest[2],
        turn=request.turn,
    )


@dataclass
class _Engine:
    """One start of a worker: it takes `capacity` requests and works on up to `places` of them at a time.

    `held` are the requests whose outcomes were not delivered yet.
    """

    epoch: int
    capacity: int
    places: int
    is_ready: bool = False
    is_silent: bool = False
    loses_messages: bool = False
    steps: int = 0
    waiting: list[Request] = field(default_factory=list)
    running: int = 0
    held: dict[int, Request] = field(default_factory=dict)


@dataclass(kw_only=True)
class SimulatedPool:
    """The workers of one attempt. `on_request` gets each request once an engine takes it up.

    `alone` has the samples that were alone in an engine that died without being the cause: one more such
    death would make them look guilty, so they are spared it.
    """

    shape: Shape
    attempt: Attempt
    clock: Clock
    draw: Random
    on_request: Callable[[Request], None]
    at_second: Callable[[], None]
    on_poll: Callable[[], None]
    alone: set[int] = field(default_factory=set)
    unplaced: int = 0
    polls: int = 0
    began: float = field(init=False)
    _engines: dict[int, _Engine] = field(default_factory=dict)
    _epochs: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: "itertools.count[int]" = field(default_factory=itertools.count)
    _events: list[PoolEvent] = field(default_factory=list)
    _short_of_memory: dict[int, int] = field(default_factory=dict)
    _failed_loads: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began = self.clock.now

    @property
    def size(self) -> int:
        return self.attempt.workers

    def start(self) -> None:
        for worker in range(self.size):
            self.restart(worker)

    def restart(self, worker: int, reduction: Reduction = NO_REDUCTION) -> None:
        capacity = max(1, self.attempt.capacity >> reduction.total)
        engine = _Engine(next(self._epochs), capacity, max(1, capacity // self.draw.choice((1, 1, 2, 4))))
        self._engines[worker] = engine
        self._report(WorkerLoading(worker=worker, epoch=engine.epoch))
        self._after(self.draw.uniform(0.1, 10), lambda: self._finish_loading(worker, engine))

    def kill(self, worker: int) -> None:
        self._engines.pop(worker, None)

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        engine = self._engines.get(worker)
        for request in requests:
            self.on_request(request)
            if engine is not None:
                engine.held[request.ordinal] = request
                engine.waiting.append(request)
        if engine is not None:
            self._start_waiting(worker, engine)

    def recall(self, worker: int) -> None:
        engine = self._engines.get(worker)
        if engine is None:
            return
        ordinals = tuple(request.ordinal for request in engine.waiting)
        engine.waiting.clear()
        returned = SamplesReturned(worker=worker, epoch=engine.epoch, ordinals=ordinals)
        self._deliver(worker, engine, returned, ordinals)

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        self.polls += 1
        self.on_poll()
        if self.polls > MOST_POLLS or self.clock.now > self.began + LONGEST_SECONDS:
            raise Violation("every_schedule_ends", f"{self.polls} polls, {self.clock.now - self.began:.0f} s")
        # Where nothing happens, a driver that wakes up late sees the same.
        end = self.clock.now + max(timeout_seconds, IDLE_SECONDS)
        while not self._events and self._queue and self._queue[0][0] <= end:
            at, _, act = heapq.heappop(self._queue)
            self.clock.now = max(self.clock.now, at)
            act()
        if not self._events:
            self.clock.now = end
        self.at_second()
        events, self._events = self._events, []
        return events

    def abort(self) -> None:
        self._engines.clear()

    def stop(self, at_once: bool = False) -> None:
        self._engines.clear()

    def _report(self, event: PoolEvent) -> None:
        self._events.append(event)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.clock.now + seconds, next(self._order), act))

    def _is_current(self, worker: int, engine: _Engine) -> bool:
        return self._engines.get(worker) is engine

    def _finish_loading(self, worker: int, engine: _Engine) -> None:
        if not self._is_current(worker, engine):
            return
        if self._failed_loads.get(worker, 0) < 2 and self._happens(self.attempt.weather.load):
            self._failed_loads[worker] = self._failed_loads.get(worker, 0) + 1
            self._die(worker, engine, Cause.DIED)
            return
        engine.is_ready = True
        facts = EngineFacts(
            engine="simulated", version="1", device="none", capacity=engine.capacity, max_model_len=10**6
        )
        self._report(WorkerReady(worker=worker, epoch=engine.epoch, facts=facts, canary=None))

    def _start_waiting(self, worker: int, engine: _Engine) -> None:
        while engine.waiting and engine.running < engine.places and not engine.is_silent:
            request = engine.waiting.pop(0)
            engine.running += 1
            if request.ordinal in self.shape.fatal:
                cause = Cause.DIED if self.draw.random() < 0.7 else Cause.HUNG
                self._after(self.draw.uniform(0, 2), partial(self._suffer, worker, engine, cause))
            else:
                self._after(self.draw.uniform(0.1, 5), partial(self._finish, worker, engine, request))

    def _finish(self, worker: int, engine: _Engine, request: Request) -> None:
        if not self._is_current(worker, engine) or engine.is_silent:
            return
        if self._meets_weather(worker, engine):
            return
        engine.running -= 1
        engine.steps += 1
        outcome = answer(request)
        if request.ordinal >= 0 and self._happens(self.attempt.weather.transient):
            outcome = Failed(ordinal=request.ordinal, code=TRANSIENT, message="the server was busy")
        self._report(WorkerStepped(worker=worker, epoch=engine.epoch, steps=engine.steps))
        ended = SamplesEnded(worker=worker, epoch=engine.epoch, outcomes=(outcome,))
        self._deliver(worker, engine, ended, (request.ordinal,))
        self._start_waiting(worker, engine)

    def _deliver(self, worker: int, engine: _Engine, event: PoolEvent, ordinals: Sequence[int]) -> None:
        """Deliver `event` now or late: then it may come after the end of its engine."""
        if self._happens(self.attempt.weather.late):
            act = partial(self._arrive, worker, engine, event, ordinals)
            self._after(self.draw.uniform(0, LATEST_SECONDS), act)
        else:
            self._arrive(worker, engine, event, ordinals)

    def _arrive(self, worker: int, engine: _Engine, event: PoolEvent, ordinals: Sequence[int]) -> None:
        if engine.loses_messages:
            return
        if isinstance(event, SamplesEnded) and not self._is_current(worker, engine):
            # Nobody may listen to it any more: what it says shows whether somebody does.
            nonsense = tuple(Failed(ordinal=n, code="ended_engine", message="nonsense") for n in ordinals)
            event = SamplesEnded(worker=worker, epoch=engine.epoch, outcomes=nonsense)
        for ordinal in ordinals:
            engine.held.pop(ordinal, None)
        self._report(event)

    def _meets_weather(self, worker: int, engine: _Engine) -> bool:
        """Whether something befalls the engine instead of its finishing a request."""
        weather = self.attempt.weather
        if self._happens(weather.node):
            self._die(worker, engine, Cause.NODE_LOST)
            return True
        if self._short_of_memory.get(worker, 0) < 3 and self._happens(weather.memory):
            self._short_of_memory[worker] = self._short_of_memory.get(worker, 0) + 1
            self._die(worker, engine, Cause.OUT_OF_MEMORY)
            return True
        for chance, cause in (
            (weather.death, Cause.DIED),
            (weather.lost, Cause.DIED),
            (weather.hang, Cause.HUNG),
        ):
            if self._happens(chance) and self._may_look_guilty(engine, cause):
                engine.loses_messages = chance == weather.lost
                self._suffer(worker, engine, cause)
                return True
        return False

    def _may_look_guilty(self, engine: _Engine, cause: Cause) -> bool:
        """Whether this death cannot be the second with one innocent sample alone in the engine."""
        held = [ordinal for ordinal in engine.held if ordinal >= 0]
        # Until the watchdog ends a hung engine, late messages may leave any one of its samples alone.
        if len(held) > 1 and cause is not Cause.HUNG:
            return True
        if self.alone.intersection(held):
            return False
        self.alone.update(held)
        return True

    def _suffer(self, worker: int, engine: _Engine, cause: Cause) -> None:
        """Have the engine die, or fall silent until the watchdog ends it."""
        if not self._is_current(worker, engine):
            return
        if cause is Cause.HUNG:
            engine.is_silent = True
        else:
            self._die(worker, engine, cause)

    def _die(self, worker: int, engine: _Engine, cause: Cause) -> None:
        del self._engines[worker]
        self._report(WorkerLost(worker=worker, epoch=engine.epoch, reason="simulated", cause=cause))

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self.draw.random() < chance
