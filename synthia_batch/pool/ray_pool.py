"""Workers as Ray actors, one engine each, on this machine or on a cluster. The only module that imports ray.

A worker goes through three states, each waiting for one call of its actor: placed (where am I?),
loading (the engine loads and answers the canaries), running (a long poll for what has ended).
"""

import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Read by ray as it is imported.

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synthia_batch.canary import ask_canaries
from synthia_batch.engine.base import EngineFacts, load_engine
from synthia_batch.engine.environment import PRIVACY
from synthia_batch.engine.seat import Seat
from synthia_batch.errors import PoolFailed, SynthiaBatchError
from synthia_batch.hardware import list_cores
from synthia_batch.job.resolved import EngineSpec, PoolSpec
from synthia_batch.pool.base import PoolEvent, SamplesEnded, Staffing, WorkerLost, WorkerReady
from synthia_batch.rows import Request
from synthia_batch.worker import Delivery, Worker

_COLLECT_SECONDS = 1.0
"""How long a long poll waits for a sample to end before it reports that none has."""
_STOP_SECONDS = 10.0
_OBJECT_STORE_BYTES = 128 * 2**20
"""Ray would take a third of the memory; prompts and answers travel inside the calls."""
_PATIENCE_SECONDS = 30.0
"""How long a worker may wait for resources before a person is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where Ray has put a worker. `cores` are those that its process may use."""

    node: str
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    facts: EngineFacts
    canary: str | None


@dataclass(slots=True, kw_only=True)
class _Hand:
    """The driver's side of one worker: its actor and the call that it is waiting for."""

    index: int
    epoch: int
    actor: Any
    group: PlacementGroup | None
    pending: Any
    place: _Place | None = None
    core: int | None = None
    since: float = field(default_factory=time.monotonic)


class _EngineActor:
    """The worker's side: runs in a process of its own. Its methods run in threads of it."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def locate(self) -> _Place:
        return _Place(node=ray.get_runtime_context().get_node_id(), cores=list_cores())

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
        self._owns_ray = False
        self._size = spec.workers or 0

    @property
    def size(self) -> int:
        """The number of engines; known once started."""
        return self._size

    def start(self) -> None:
        """Join or start Ray, then place every worker."""
        self._connect()
        self._size = self._spec.workers or self._count_engines()
        for worker in range(self._size):
            self.restart(worker)

    def restart(self, worker: int) -> None:
        """Place `worker` in a new actor."""
        self._discard(worker)
        group = self._reserve_gpus()
        actor: Any = ray.remote(_EngineActor).options(**self._actor_options(group)).remote()
        epoch = next(self._epochs)
        pending = actor.locate.remote()
        self._hands[worker] = _Hand(index=worker, epoch=epoch, actor=actor, group=group, pending=pending)

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        """Send `requests` in one message."""
        self._hands[worker].actor.feed.remote(tuple(requests))

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return what the answered calls say, and make the next call of each of those workers."""
        hands = {hand.pending: hand for hand in self._hands.values() if hand.pending is not None}
        if not hands:
            time.sleep(timeout_seconds)
            return []
        answered, _ = ray.wait(list(hands), num_returns=1, timeout=timeout_seconds)
        if answered:
            answered, _ = ray.wait(list(hands), num_returns=len(hands), timeout=0)
        events: list[PoolEvent] = []
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
        if self._owns_ray:
            ray.shutdown()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        try:
            if self._spec.ray_address:
                ray.init(self._spec.ray_address, log_to_driver=False, logging_level=logging.ERROR)
                return
            ray.init(
                # Keeps RAY_ADDRESS, and a Ray that was left running on this machine, out of it.
                "local",
                num_cpus=max(len(list_cores()), self._spec.workers or 0),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
        except (RayError, OSError, RuntimeError, ConnectionError, ValueError) as exc:
            where = self._spec.ray_address or "on this machine"
            raise PoolFailed(f"Ray could not be reached or started ({where}): {exc}") from exc
        self._owns_ray = True

    def _count_engines(self) -> int:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        kind, each = ("GPU", self._gpus) if self._gpus else ("CPU", 1)
        count = int(resources.get(kind, 0)) // each
        if count < 1:
            raise PoolFailed(
                f"an engine needs {each} {kind}, Ray has {resources.get(kind, 0):g}; "
                "use fewer GPUs for each engine (--tensor-parallel-size), or a cluster (--ray-address)"
            )
        return count

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
            return [_explain_loss(hand, exc)]
        match answer:
            case _Place():
                hand.place = answer
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
            events.append(WorkerLost(worker=hand.index, epoch=hand.epoch, reason=delivery.error))
        else:
            hand.pending = hand.actor.collect.remote(_COLLECT_SECONDS)
        return events

    def _load(self, hand: _Hand, place: _Place) -> Any:
        staffing = self._staffing
        here = place.node == ray.get_runtime_context().get_node_id()
        log = staffing.log_path(hand.index) if here else None  # Elsewhere Ray's own logs have it.
        return hand.actor.load.remote(staffing.engine, self._seat(hand, place), staffing.canaries, log)

    def _seat(self, hand: _Hand, place: _Place) -> Seat:
        """Give each CPU engine of a node a core of its own."""
        if self._gpus or self._staffing.engine.kind == "scripted":
            return Seat()
        others = [h for h in self._hands.values() if h is not hand and h.place and h.place.node == place.node]
        taken = {other.core for other in others}
        # More engines than cores share them from the first on.
        free = [core for core in place.cores if core not in taken] or list(place.cores)
        hand.core = free[len(others) % len(free)]
        return Seat(core=hand.core, neighbours=min(self._size, len(place.cores)))

    def _report_waiting(self) -> None:
        for hand in self._hands.values():
            if hand.place is None and time.monotonic() - hand.since > _PATIENCE_SECONDS:
                hand.since = time.monotonic()
                needs = f"{self._gpus} GPU and 1 CPU" if self._gpus else "1 CPU"
                self._say(f"worker {hand.index} waits for Ray to find it {needs}")

    def _discard(self, worker: int) -> None:
        hand = self._hands.pop(worker, None)
        if hand is None:
            return
        ray.kill(hand.actor)
        if hand.group is not None:
            remove_placement_group(hand.group)


def _gpus_per_engine(spec: EngineSpec) -> int:
    if spec.kind == "scripted" or spec.device == "cpu":
        return 0
    return spec.tensor_parallel_size * spec.pipeline_parallel_size


def _explain_loss(hand: _Hand, exc: Exception) -> WorkerLost:
    """Tell a worker that died from one that was refused for good."""
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    refused = cause if isinstance(cause, SynthiaBatchError) else None
    return WorkerLost(worker=hand.index, epoch=hand.epoch, reason=str(exc), refused=refused)


def _redirect_output(log: Path) -> None:
    """Send everything that this process prints, libraries and crashes included, to `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
