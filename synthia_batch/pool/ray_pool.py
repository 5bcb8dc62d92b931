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

from synthia_batch.engine.placement import Placement
from synthia_batch.errors import EngineOutOfMemory, PoolFailed, SynthiaBatchError
from synthia_batch.job.resolved import EngineSpec, PoolSpec
from synthia_batch.pool.base import (
    REPORTS_PER_WATCHDOG,
    Cause,
    PoolEvent,
    SamplesEnded,
    Staffing,
    WorkerAdded,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    WorkerStepped,
)
from synthia_batch.pool.ray_actor import STOP_SECONDS, EngineActor, Loaded, Location
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
class _ActorHandle:
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
    location: Location | None = None
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
        self._handles: dict[int, _ActorHandle] = {}
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
        return sum(handle.location is None and handle.since < limit for handle in self._handles.values())

    def restart(self, worker: int, halvings: int = 0) -> None:
        """Location `worker` in a new actor. Ray waits for room where there is none."""
        self._discard(worker)
        group = self._reserve_gpus()
        actor: Any = ray.remote(EngineActor).options(**self._actor_options(group)).remote()
        self._handles[worker] = _ActorHandle(
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
        self._handles[worker].actor.feed.remote(tuple(requests))

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return what the answered calls say, and make the next call of each of those workers."""
        events = [*self._grow(), *self._settle_doubts()]
        handles = {handle.pending: handle for handle in self._handles.values() if handle.pending is not None}
        answered: list[Any] = []
        if handles:
            answered, _ = ray.wait(list(handles), num_returns=1, timeout=0 if events else timeout_seconds)
        elif not events:
            time.sleep(timeout_seconds)
        if answered:
            answered, _ = ray.wait(list(handles), num_returns=len(handles), timeout=0)
        for call in answered:
            events += self._advance(handles[call])
        for event in events:
            if isinstance(event, WorkerLost):
                # At once: a process whose engine has died may still hold a GPU's memory.
                self._discard(event.worker)
        self._report_waiting()
        return events

    def abort(self) -> None:
        """Have every loaded worker drop what it has not ended."""
        for handle in self._handles.values():
            if handle.location is not None:
                handle.actor.abort.remote()

    def stop(self, at_once: bool = False) -> None:
        """Stop the loops, unless `at_once`; then end the processes, and Ray where it was started here."""
        if not ray.is_initialized():
            return
        placed = [handle for handle in self._handles.values() if handle.location is not None]
        if placed and not at_once:
            stops = [handle.actor.stop.remote() for handle in placed]
            ray.wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
        for worker in list(self._handles):
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

    def _advance(self, handle: _ActorHandle) -> list[PoolEvent]:
        call, handle.pending = handle.pending, None
        try:
            answer = ray.get(call)
        except ActorUnavailableError as exc:
            now = time.monotonic()
            if handle.doubt is None:
                handle.doubt, handle.doubted_at = exc, now
            handle.probed_at = now
            return []
        except (RayError, SynthiaBatchError) as exc:
            return [self._explain_loss(handle, exc)]
        if handle.doubt is not None:
            # It is there after all, but what it said in between is lost, and perhaps samples with it.
            return [self._lose(handle, handle.doubt, Cause.NODE_LOST)]
        match answer:
            case Location():
                handle.location, handle.pid = answer, answer.pid
                handle.pending = self._load(handle, answer)
                return [WorkerLoading(worker=handle.index, epoch=handle.epoch)]
            case Loaded():
                handle.pending = handle.actor.collect.remote(self._collect_seconds)
                return [
                    WorkerReady(
                        worker=handle.index, epoch=handle.epoch, facts=answer.facts, canary=answer.canary
                    )
                ]
            case Delivery():
                return self._take(handle, answer)
        raise TypeError(f"a worker answered {answer!r}")

    def _take(self, handle: _ActorHandle, delivery: Delivery) -> list[PoolEvent]:
        events: list[PoolEvent] = []
        if delivery.outcomes:
            events.append(SamplesEnded(worker=handle.index, epoch=handle.epoch, outcomes=delivery.outcomes))
        if delivery.error is not None:
            cause = Cause.OUT_OF_MEMORY if delivery.is_out_of_memory else Cause.DIED
            events.append(
                WorkerLost(worker=handle.index, epoch=handle.epoch, reason=delivery.error, cause=cause)
            )
        else:
            events.append(WorkerStepped(worker=handle.index, epoch=handle.epoch, steps=delivery.steps))
            handle.pending = handle.actor.collect.remote(self._collect_seconds)
        return events

    def _load(self, handle: _ActorHandle, location: Location) -> Any:
        staffing = self._staffing
        # Elsewhere Ray's own logs have what the engine prints.
        log = staffing.log_path(handle.index) if self._is_here(location) else None
        return handle.actor.load.remote(
            staffing.engine, self._choose_placement(handle, location), staffing.canaries, log
        )

    def _choose_placement(self, handle: _ActorHandle, location: Location) -> Placement:
        """Give each CPU engine of a node a core of its own."""
        if self._gpus or self._staffing.engine.kind == "scripted":
            return Placement(halvings=handle.halvings)
        others = [
            h
            for h in self._handles.values()
            if h is not handle and h.location and h.location.node == location.node
        ]
        taken = {other.core for other in others}
        # More engines than cores share them from the first on.
        free = [core for core in location.cores if core not in taken] or list(location.cores)
        handle.core = free[len(others) % len(free)]
        return Placement(
            core=handle.core, neighbours=min(self._size, len(location.cores)), halvings=handle.halvings
        )

    def _settle_doubts(self) -> list[PoolEvent]:
        """Ask again what does not answer, until Ray knows whether it or its machine is gone.

        Restarted before that, a worker would be placed on the machine that is gone.
        """
        events: list[PoolEvent] = []
        now = time.monotonic()
        for handle in self._handles.values():
            if handle.doubt is None or handle.pending is not None or now - handle.probed_at < _PROBE_SECONDS:
                continue
            if handle.location is not None and not self._session.is_alive(handle.location.node):
                events.append(self._lose(handle, handle.doubt, Cause.NODE_LOST))
            elif now - handle.doubted_at > _DOUBT_SECONDS:
                events.append(self._lose(handle, handle.doubt, Cause.DIED))
            else:
                handle.pending = handle.actor.locate.remote()
        return events

    def _explain_loss(self, handle: _ActorHandle, exc: Exception) -> WorkerLost:
        """Tell a worker that died from one that was refused for good."""
        if not isinstance(exc, RayTaskError):
            handle.pid = None
        error = exc.cause if isinstance(exc, RayTaskError) else exc
        if isinstance(error, (EngineOutOfMemory, OutOfMemoryError)):
            return self._lose(handle, exc, Cause.OUT_OF_MEMORY)
        if isinstance(error, SynthiaBatchError):
            return self._lose(handle, exc, Cause.DIED, refused=error)
        if handle.location is not None and not self._session.is_alive(handle.location.node):
            return self._lose(handle, exc, Cause.NODE_LOST)
        return self._lose(handle, exc, Cause.DIED)

    def _lose(
        self, handle: _ActorHandle, exc: Exception, cause: Cause, refused: SynthiaBatchError | None = None
    ) -> WorkerLost:
        handle.doubt = None
        return WorkerLost(
            worker=handle.index, epoch=handle.epoch, reason=str(exc), cause=cause, refused=refused
        )

    def _report_waiting(self) -> None:
        for handle in self._handles.values():
            is_late = time.monotonic() - handle.since > _PATIENCE_SECONDS
            if handle.location is None and is_late and not handle.is_told:
                handle.is_told = True
                needs = f"{self._gpus} GPU and 1 CPU" if self._gpus else "1 CPU"
                self._say(f"worker {handle.index} waits for Ray to find it {needs}")

    def _discard(self, worker: int) -> None:
        handle = self._handles.pop(worker, None)
        if handle is None:
            return
        ray.kill(handle.actor)
        if handle.location is not None and handle.pid is not None and self._is_here(handle.location):
            # Ray asks the process to end itself, which one that is stopped does not do.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(handle.pid, signal.SIGKILL)
        if handle.group is not None:
            remove_placement_group(handle.group)

    def _is_here(self, location: Location) -> bool:
        return location.node == str(ray.get_runtime_context().get_node_id())


def _gpus_per_engine(spec: EngineSpec) -> int:
    if spec.kind == "scripted" or spec.device == "cpu":
        return 0
    return spec.tensor_parallel_size * spec.pipeline_parallel_size
