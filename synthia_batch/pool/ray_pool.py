"""Workers as Ray actors, one engine each, on this machine or on a cluster.

`ray_session` is the Ray that they live in, `ray_actor` is the far side.

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
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synthia_batch.engine.seat import Seat
from synthia_batch.errors import EngineOutOfMemory, PoolFailed, SynthiaBatchError
from synthia_batch.job.resolved import EngineSpec, PoolSpec
from synthia_batch.pool.base import (
    REPORTS_PER_WATCHDOG,
    Cause,
    PoolEvent,
    SamplesEnded,
    SamplesReturned,
    Staffing,
    WorkerAdded,
    WorkerLost,
    WorkerReady,
    WorkerStepped,
)
from synthia_batch.pool.ray_actor import STOP_SECONDS, EngineActor, Loaded, Place
from synthia_batch.pool.ray_session import RaySession
from synthia_batch.privacy import PRIVACY
from synthia_batch.rows import Request
from synthia_batch.worker import Delivery

_COLLECT_SECONDS = 1.0
"""How long a long poll waits for a sample to end before it reports that none has."""
_SPARE_SECONDS = 10.0
"""How long work is kept for a worker that waits for room."""
_PATIENCE_SECONDS = 30.0
"""How long a worker may wait for room before a person is told."""
_DOUBT_SECONDS = 30.0
"""How long Ray may take to find out why an actor does not answer. Longer than its health checks."""
_PROBE_SECONDS = 0.5
_GROWTH_SECONDS = 3.0
"""Between two looks at whether machines have joined."""


@dataclass(slots=True, kw_only=True)
class _Hand:
    """The driver's side of one worker: its actor and the call that it is waiting for. `pid` is that
    of its process, as far as that is known to live. `doubt` is set from when the actor does not
    answer until Ray knows why.
    """

    index: int
    epoch: int
    actor: Any
    group: PlacementGroup | None
    pending: Any
    halvings: int
    place: Place | None = None
    pid: int | None = None
    core: int | None = None
    since: float = field(default_factory=time.monotonic)
    is_told: bool = False
    doubt: Exception | None = None
    doubted_at: float = 0.0
    probed_at: float = 0.0


class RayPool:
    """Implements `Pool`; see the module."""

    def __init__(self, spec: PoolSpec, staffing: Staffing, say: Callable[[str], None]) -> None:
        self._spec = spec
        self._staffing = staffing
        self._collect_seconds = min(_COLLECT_SECONDS, spec.watchdog_seconds / REPORTS_PER_WATCHDOG)
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
        actor: Any = ray.remote(EngineActor).options(**self._actor_options(group)).remote()
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

    def recall(self, worker: int) -> None:
        """Have the worker give back what waits."""
        self._hands[worker].actor.recall.remote()

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return what the answered calls say, and make the next call of each of those workers."""
        events = [*self._grow(), *self._settle_doubts()]
        hands = {hand.pending: hand for hand in self._hands.values() if hand.pending is not None}
        answered: list[Any] = []
        if hands:
            answered, _ = ray.wait(list(hands), num_returns=1, timeout=0 if events else timeout_seconds)
        elif not events:
            time.sleep(timeout_seconds)
        if answered:
            answered, _ = ray.wait(list(hands), num_returns=len(hands), timeout=0)
        for call in answered:
            events += self._advance(hands[call])
        for event in events:
            if isinstance(event, WorkerLost):
                # At once: a process whose engine has died may still hold a GPU's memory.
                self._discard(event.worker)
        self._report_waiting()
        return events

    def abort(self) -> None:
        """Have every loaded worker drop what it has not ended."""
        for hand in self._hands.values():
            if hand.place is not None:
                hand.actor.abort.remote()

    def stop(self, at_once: bool = False) -> None:
        """Stop the loops, unless `at_once`; then end the processes, and Ray where it was started here."""
        if not ray.is_initialized():
            return
        placed = [hand for hand in self._hands.values() if hand.place is not None]
        if placed and not at_once:
            stops = [hand.actor.stop.remote() for hand in placed]
            ray.wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
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
        except ActorUnavailableError as exc:
            now = time.monotonic()
            if hand.doubt is None:
                hand.doubt, hand.doubted_at = exc, now
            hand.probed_at = now
            return []
        except (RayError, SynthiaBatchError) as exc:
            return [self._explain_loss(hand, exc)]
        if hand.doubt is not None:
            # It is there after all, but what it said in between is lost, and perhaps samples with it.
            return [self._lose(hand, hand.doubt, Cause.NODE_LOST)]
        match answer:
            case Place():
                hand.place, hand.pid = answer, answer.pid
                hand.pending = self._load(hand, answer)
                return []
            case Loaded():
                hand.pending = hand.actor.collect.remote(self._collect_seconds)
                return [
                    WorkerReady(worker=hand.index, epoch=hand.epoch, facts=answer.facts, canary=answer.canary)
                ]
            case Delivery():
                return self._take(hand, answer)
        raise TypeError(f"a worker answered {answer!r}")

    def _take(self, hand: _Hand, delivery: Delivery) -> list[PoolEvent]:
        events: list[PoolEvent] = [WorkerStepped.tell(hand.index, hand.epoch, delivery)]
        if delivery.outcomes:
            events.append(SamplesEnded(worker=hand.index, epoch=hand.epoch, outcomes=delivery.outcomes))
        if delivery.returned:
            events.append(SamplesReturned(worker=hand.index, epoch=hand.epoch, ordinals=delivery.returned))
        if delivery.error is not None:
            cause = Cause.OUT_OF_MEMORY if delivery.is_out_of_memory else Cause.DIED
            events.append(WorkerLost(worker=hand.index, epoch=hand.epoch, reason=delivery.error, cause=cause))
        else:
            hand.pending = hand.actor.collect.remote(self._collect_seconds)
        return events

    def _load(self, hand: _Hand, place: Place) -> Any:
        staffing = self._staffing
        # Elsewhere Ray's own logs have what the engine prints.
        log = staffing.log_path(hand.index) if self._is_here(place) else None
        return hand.actor.load.remote(staffing.engine, self._seat(hand, place), staffing.canaries, log)

    def _seat(self, hand: _Hand, place: Place) -> Seat:
        """Give each CPU engine of a node a core of its own."""
        if self._gpus or self._staffing.engine.kind == "scripted":
            return Seat(halvings=hand.halvings)
        others = [h for h in self._hands.values() if h is not hand and h.place and h.place.node == place.node]
        taken = {other.core for other in others}
        # More engines than cores share them from the first on.
        free = [core for core in place.cores if core not in taken] or list(place.cores)
        hand.core = free[len(others) % len(free)]
        return Seat(core=hand.core, neighbours=min(self._size, len(place.cores)), halvings=hand.halvings)

    def _settle_doubts(self) -> list[PoolEvent]:
        """Ask again what does not answer, until Ray knows whether it or its machine is gone.

        Restarted before that, a worker would be placed on the machine that is gone.
        """
        events: list[PoolEvent] = []
        now = time.monotonic()
        for hand in self._hands.values():
            if hand.doubt is None or hand.pending is not None or now - hand.probed_at < _PROBE_SECONDS:
                continue
            if hand.place is not None and not self._session.is_alive(hand.place.node):
                events.append(self._lose(hand, hand.doubt, Cause.NODE_LOST))
            elif now - hand.doubted_at > _DOUBT_SECONDS:
                events.append(self._lose(hand, hand.doubt, Cause.DIED))
            else:
                hand.pending = hand.actor.locate.remote()
        return events

    def _explain_loss(self, hand: _Hand, exc: Exception) -> WorkerLost:
        """Tell a worker that died from one that was refused for good."""
        if not isinstance(exc, RayTaskError):
            hand.pid = None
        error = exc.cause if isinstance(exc, RayTaskError) else exc
        if isinstance(error, (EngineOutOfMemory, OutOfMemoryError)):
            return self._lose(hand, exc, Cause.OUT_OF_MEMORY)
        if isinstance(error, SynthiaBatchError):
            return self._lose(hand, exc, Cause.DIED, refused=error)
        if hand.place is not None and not self._session.is_alive(hand.place.node):
            return self._lose(hand, exc, Cause.NODE_LOST)
        return self._lose(hand, exc, Cause.DIED)

    def _lose(
        self, hand: _Hand, exc: Exception, cause: Cause, refused: SynthiaBatchError | None = None
    ) -> WorkerLost:
        hand.doubt = None
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

    def _is_here(self, place: Place) -> bool:
        return place.node == str(ray.get_runtime_context().get_node_id())


def _gpus_per_engine(spec: EngineSpec) -> int:
    if spec.kind == "scripted" or spec.device == "cpu":
        return 0
    return spec.tensor_parallel_size * spec.pipeline_parallel_size
