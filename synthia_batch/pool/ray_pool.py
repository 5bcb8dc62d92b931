"""Workers as Ray actors, one engine each, on this machine or on a cluster.

`ray_session` is the Ray that they live in; no other module imports ray.

A worker goes through three states, each waiting for one call of its actor: placed (where am I?),
loading (the engine loads and answers the canaries), running (a long poll for what has ended).
"""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synthia_batch.canary import ask_canaries
from synthia_batch.engine.base import EngineFacts, load_engine
from synthia_batch.engine.environment import PRIVACY
from synthia_batch.engine.seat import Seat
from synthia_batch.errors import EngineOutOfMemory, PoolFailed, SynthiaBatchError
from synthia_batch.hardware import list_cores
from synthia_batch.job.resolved import EngineSpec, PoolSpec
from synthia_batch.pool.base import (
    Cause,
    PoolEvent,
    SamplesEnded,
    Staffing,
    WorkerAdded,
    WorkerLost,
    WorkerReady,
    WorkerStepped,
)
from synthia_batch.pool.ray_session import RaySession
from synthia_batch.rows import Request
from synthia_batch.worker import Delivery, Worker

_COLLECT_SECONDS = 1.0
"""How long a long poll waits for a sample to end before it reports that none has."""
_STOP_SECONDS = 10.0
_SPARE_SECONDS = 10.0
"""How long work is kept for a worker that waits for room."""
_PATIENCE_SECONDS = 30.0
"""How long a worker may wait for room before a person is told."""
_GROWTH_SECONDS = 3.0
"""Between two looks at whether machines have joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where Ray has put a worker. `cores` are those that its process may use."""

    node: str
    pid: int
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    facts: EngineFacts
    canary: str | None


@dataclass(slots=True, kw_only=True)
class _Hand:
    """The driver's side of one worker: its actor and the call that it is waiting for. `pid` is that
    of its process, as far as that is known to live.
    """

    index: int
    epoch: int
    actor: Any
    group: PlacementGroup | None
    pending: Any
    halvings: int
    place: _Place | None = None
    pid: int | None = None
    core: int | None = None
    since: float = field(default_factory=time.monotonic)
    is_told: bool = False


class _EngineActor:
    """The worker's side: runs in a process of its own. Its methods run in threads of it."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def locate(self) -> _Place:
        return _Place(node=ray.get_runtime_context().get_node_id(), pid=os.getpid(), cores=list_cores())

    def load(self, spec: EngineSpec, seat: Seat, canaries: tuple[Request, ...], log: Path | None) -> _Loaded:
        if log is not None:
            _redirect_output(log)
        engine = load_engine(spec, seat)
        canary = ask_canaries(engine, canaries) if canaries else None
        self._worker = Worker(engine)
        self._worker.start()
        return _Loaded(facts=engine.facts, canary=canary)

    def feed(self, requests: Sequence[Request]) -> None:
        self._loaded().feed(requests)

    def collect(self, wait_seconds: float) -> Delivery:
        return self._loaded().collect(wait_seconds)

    def abort(self) -> None:
        self._loaded().abort()

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop(_STOP_SECONDS)

    def _loaded(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("the engine is not loaded yet")
        return self._worker


class RayPool:
    """Implements `Pool`; see the module."""

    def __init__(self, spec: PoolSpec, staffing: Staffing, say: Callable[[str], None]) -> None:
        self._spec = spec
        self._staffing = staffing
        self._say = say
        self._gpus = _gpus_per_engine(staffing.engine)
        self._hands: dict[int, _Hand] = {}
        self._epochs = itertools.count(1)
        self._session = RaySession(spec)
        self._looked_at = 0.0
        self._size = spec.workers or 0

    @property
    def size(self) -> int:
        """The number of engines; known once started."""
        return self._size

    def start(self) -> None:
        """Join or start Ray, then place every worker."""
        self._session.open()
        self._size = self._spec.workers or self._count_engines()
        if self._size < 1:
            each, kind = self._needs()
            raise PoolFailed(
                f"an engine needs {each} {kind}, Ray has {self._session.count(kind)}; "
                "use fewer GPUs for each engine (--tensor-parallel-size), or a cluster (--ray-address)"
            )
        for worker in range(self._size):
            self.restart(worker)

    @property
    def unplaced(self) -> int:
        """Workers for which Ray has found no room for a while."""
        limit = time.monotonic() - _SPARE_SECONDS
        return sum(hand.place is None and hand.since < limit for hand in self._hands.values())

    def restart(self, worker: int, halvings: int = 0) -> None:
        """Place `worker` in a new actor. Ray waits for room where there is none."""
        self._discard(worker)
        group = self._reserve_gpus()
        actor: Any = ray.remote(_EngineActor).options(**self._actor_options(group)).remote()
        self._hands[worker] = _Hand(
            index=worker,
            epoch=next(self._epochs),
            actor=actor,
            group=group,
            pending=actor.locate.remote(),
            halvings=halvings,
        )

    def kill(self, worker: int) -> None:
        """End the actor's process with SIGKILL."""
        self._discard(worker)

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        """Send `requests` in one message."""
        self._hands[worker].actor.feed.remote(tuple(requests))

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return what the answered calls say, and make the next call of each of those workers."""
        events = self._grow()
        hands = {hand.pending: hand for hand in self._hands.values() if hand.pending is not None}
        if not hands:
            time.sleep(timeout_seconds)
            return events
        answered, _ = ray.wait(list(hands), num_returns=1, timeout=timeout_seconds)
        if answered:
            answered, _ = ray.wait(list(hands), num_returns=len(hands), timeout=0)
        for call in answered:
            events += self._advance(hands[call])
        self._report_waiting()
        return events

    def abort(self) -> None:
        """Have every loaded worker drop what it has not ended."""
        for hand in self._hands.values():
            if hand.place is not None:
                hand.actor.abort.remote()

    def stop(self) -> None:
        """Stop the loops, then end the processes, and Ray where it was started here."""
        if not ray.is_initialized():
            return
        stops = [hand.actor.stop.remote() for hand in self._hands.values() if hand.place is not None]
        ray.wait(stops, num_returns=len(stops), timeout=_STOP_SECONDS) if stops else None
        for worker in list(self._hands):
            self._discard(worker)
        self._session.close()

    def _needs(self) -> tuple[int, str]:
        """Return how many of which resource an engine takes."""
        return (self._gpus, "GPU") if self._gpus else (1, "CPU")

    def _count_engines(self) -> int:
        each, kind = self._needs()
        return self._session.count(kind) // each

    def _grow(self) -> list[PoolEvent]:
        """Start workers on machines that have joined, where the job did not say how many it wants."""
        now = time.monotonic()
        if self._spec.workers or not self._session.can_grow or now - self._looked_at < _GROWTH_SECONDS:
            return []
        self._looked_at = now
        added = range(self._size, self._count_engines())
        for worker in added:
            self.restart(worker)
        self._size += len(added)
        return [WorkerAdded(worker=worker) for worker in added]

    def _reserve_gpus(self) -> PlacementGroup | None:
        if not self._gpus:
            return None
        group: PlacementGroup = placement_group([{"GPU": self._gpus, "CPU": 1}], strategy="STRICT_PACK")
        return group

    def _actor_options(self, group: PlacementGroup | None) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_cpus": 1,
            "num_gpus": self._gpus,
            # A poll, a feed and a stop at the same time.
            "max_concurrency": 4,
            # The driver restarts workers itself, under a new epoch.
            "max_restarts": 0,
            "runtime_env": {"env_vars": PRIVACY},
        }
        if group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(placement_group=group)
        return options

    def _advance(self, hand: _Hand) -> list[PoolEvent]:
        call, hand.pending = hand.pending, None
        try:
            answer = ray.get(call)
        except (RayError, SynthiaBatchError) as exc:
            return [self._explain_loss(hand, exc)]
        match answer:
            case _Place():
                hand.place, hand.pid = answer, answer.pid
                hand.pending = self._load(hand, answer)
                return []
            case _Loaded():
                hand.pending = hand.actor.collect.remote(_COLLECT_SECONDS)
                return [
                    WorkerReady(worker=hand.index, epoch=hand.epoch, facts=answer.facts, canary=answer.canary)
                ]
            case Delivery():
                return self._take(hand, answer)
        raise TypeError(f"a worker answered {answer!r}")

    def _take(self, hand: _Hand, delivery: Delivery) -> list[PoolEvent]:
        events: list[PoolEvent] = []
        if delivery.outcomes:
            events.append(SamplesEnded(worker=hand.index, epoch=hand.epoch, outcomes=delivery.outcomes))
        if delivery.error is not None:
            cause = Cause.OUT_OF_MEMORY if delivery.is_out_of_memory else Cause.DIED
            events.append(WorkerLost(worker=hand.index, epoch=hand.epoch, reason=delivery.error, cause=cause))
        else:
            events.append(WorkerStepped(worker=hand.index, epoch=hand.epoch, steps=delivery.steps))
            hand.pending = hand.actor.collect.remote(_COLLECT_SECONDS)
        return events

    def _load(self, hand: _Hand, place: _Place) -> Any:
        staffing = self._staffing
        # Elsewhere Ray's own logs have what the engine prints.
        log = staffing.log_path(hand.index) if self._is_here(place) else None
        return hand.actor.load.remote(staffing.engine, self._seat(hand, place), staffing.canaries, log)

    def _seat(self, hand: _Hand, place: _Place) -> Seat:
        """Give each CPU engine of a node a core of its own."""
        if self._gpus or self._staffing.engine.kind == "scripted":
            return Seat(halvings=hand.halvings)
        others = [h for h in self._hands.values() if h is not hand and h.place and h.place.node == place.node]
        taken = {other.core for other in others}
        # More engines than cores share them from the first on.
        free = [core for core in place.cores if core not in taken] or list(place.cores)
        hand.core = free[len(others) % len(free)]
        return Seat(core=hand.core, neighbours=min(self._size, len(place.cores)), halvings=hand.halvings)

    def _explain_loss(self, hand: _Hand, exc: Exception) -> WorkerLost:
        """Tell a worker that died from one that was refused for good."""
        if not isinstance(exc, RayTaskError):
            hand.pid = None
        error = exc.cause if isinstance(exc, RayTaskError) else exc
        cause, refused = Cause.DIED, None
        if isinstance(error, (EngineOutOfMemory, OutOfMemoryError)):
            cause = Cause.OUT_OF_MEMORY
        elif isinstance(error, SynthiaBatchError):
            refused = error
        elif hand.place is not None and not self._session.is_alive(hand.place.node):
            cause = Cause.NODE_LOST
        return WorkerLost(worker=hand.index, epoch=hand.epoch, reason=str(exc), cause=cause, refused=refused)

    def _report_waiting(self) -> None:
        for hand in self._hands.values():
            is_late = time.monotonic() - hand.since > _PATIENCE_SECONDS
            if hand.place is None and is_late and not hand.is_told:
                hand.is_told = True
                needs = f"{self._gpus} GPU and 1 CPU" if self._gpus else "1 CPU"
                self._say(f"worker {hand.index} waits for Ray to find it {needs}")

    def _discard(self, worker: int) -> None:
        hand = self._hands.pop(worker, None)
        if hand is None:
            return
        ray.kill(hand.actor)
        if hand.place is not None and hand.pid is not None and self._is_here(hand.place):
            # Ray asks the process to end itself, which one that is stopped does not do.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(hand.pid, signal.SIGKILL)
        if hand.group is not None:
            remove_placement_group(hand.group)

    def _is_here(self, place: _Place) -> bool:
        return place.node == str(ray.get_runtime_context().get_node_id())


def _gpus_per_engine(spec: EngineSpec) -> int:
    if spec.kind == "scripted" or spec.device == "cpu":
        return 0
    return spec.tensor_parallel_size * spec.pipeline_parallel_size


def _redirect_output(log: Path) -> None:
    """Send everything that this process prints, libraries and crashes included, to `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
