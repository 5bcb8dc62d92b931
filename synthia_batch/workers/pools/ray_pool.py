"""Workers as Ray actors, one engine each, on this machine or on a cluster.

`ray_session` is the Ray that they live in, `ray_actor` is the far side.

A worker goes through three states, each waiting for one call of its actor: placed (where am I?),
loading (the engine loads and answers the canaries), running (a long poll for what has ended).
"""

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import ray

from synthia_batch.core.types import Request
from synthia_batch.errors import PoolFailed
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.pools.base import (
    REPORTS_PER_WATCHDOG,
    PoolEvent,
    Staffing,
    WorkerAdded,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    read_delivery,
)
from synthia_batch.workers.pools.ray_actor import STOP_SECONDS, Loaded, Location
from synthia_batch.workers.pools.ray_handle import ActorHandle
from synthia_batch.workers.pools.ray_placement import Placer
from synthia_batch.workers.pools.ray_session import RaySession
from synthia_batch.workers.worker import Delivery

_log = logging.getLogger(__name__)

_COLLECT_SECONDS = 1.0
"""How long a long poll waits for a sample to end before it reports that none has."""
_SPARE_SECONDS = 10.0
"""How long work is kept for a worker that waits for room."""
_PATIENCE_SECONDS = 30.0
"""How long a worker may wait for room before a person is told."""
_GROWTH_SECONDS = 3.0
"""Between two looks at whether machines have joined."""


class RayPool:
    """Implements `Pool`; see the module."""

    def __init__(self, spec: PoolSpec, staffing: Staffing) -> None:
        self._spec = spec
        self._staffing = staffing
        self._collect_seconds = min(_COLLECT_SECONDS, spec.watchdog_seconds / REPORTS_PER_WATCHDOG)
        self._handles: dict[int, ActorHandle] = {}
        self._epochs = itertools.count(1)
        self._session = RaySession(spec)
        self._placer = Placer(staffing.engine, self._session)
        self._looked_at = 0.0
        self._size = spec.workers or 0

    @property
    def size(self) -> int:
        """The number of engines; known once started."""
        return self._size

    def start(self) -> None:
        """Join or start Ray, then place every worker."""
        self._session.open()
        self._size = self._spec.workers or self._placer.count_engines()
        if self._size < 1:
            raise PoolFailed(
                f"an engine needs {self._placer.needs}, Ray has {self._placer.has}; `synthia-batch doctor` "
                "says which GPUs are seen. Use fewer GPUs for each engine (--tensor-parallel-size, which is "
                "within one machine, or --pipeline-parallel-size, which may go over several), or a larger "
                "cluster (--ray-address)"
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
        self._handles[worker] = ActorHandle(
            index=worker,
            epoch=next(self._epochs),
            halvings=halvings,
            reservation=self._placer.reserve(),
            session=self._session,
        )

    def kill(self, worker: int) -> None:
        """End the actor's process with SIGKILL."""
        self._discard(worker)

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        """Send `requests` in one message."""
        self._handles[worker].actor.feed.remote(tuple(requests))

    def recall(self, worker: int) -> None:
        """Have the worker give back what waits."""
        self._handles[worker].actor.recall.remote()

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return what the answered calls say, and make the next call of each of those workers."""
        events = self._grow()
        events += [lost for handle in self._handles.values() if (lost := handle.settle_doubt()) is not None]
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

    def _grow(self) -> list[PoolEvent]:
        """Start workers on machines that have joined, where the job did not say how many it wants."""
        now = time.monotonic()
        if self._spec.workers or not self._session.can_grow or now - self._looked_at < _GROWTH_SECONDS:
            return []
        self._looked_at = now
        added = range(self._size, self._placer.count_engines())
        for worker in added:
            self.restart(worker)
        self._size += len(added)
        return [WorkerAdded(worker=worker) for worker in added]

    def _advance(self, handle: ActorHandle) -> list[PoolEvent]:
        worker, epoch = handle.index, handle.epoch
        match handle.take_answer():
            case WorkerLost() as lost:
                return [lost]
            case Location() as location:
                handle.pending = self._load(handle, location)
                return [WorkerLoading(worker=worker, epoch=epoch)]
            case Loaded() as loaded:
                handle.pending = handle.actor.collect.remote(self._collect_seconds)
                return [WorkerReady(worker=worker, epoch=epoch, facts=loaded.facts, canary=loaded.canary)]
            case Delivery() as delivery:
                if delivery.error is None:
                    handle.pending = handle.actor.collect.remote(self._collect_seconds)
                return read_delivery(worker, epoch, delivery)
            case None:
                return []
            case answer:
                raise TypeError(f"a worker answered {answer!r}")

    def _load(self, handle: ActorHandle, location: Location) -> Any:
        neighbours = [
            other
            for other in self._handles.values()
            if other is not handle and other.location and other.location.node == location.node
        ]
        handle.core = self._placer.choose_core(location, [other.core for other in neighbours])
        if handle.reservation.splits_a_stage:
            _log.info(
                f"worker {handle.index}: Ray found room for it only with a tensor-parallel group on two "
                "machines, which is slow; machines with a multiple of --tensor-parallel-size GPUs avoid it"
            )
        placement = Placement(
            core=handle.core,
            neighbours=max(1, min(self._size, len(location.cores))),
            halvings=handle.halvings,
            spans_nodes=handle.reservation.spans_nodes,
        )
        # Elsewhere Ray's own logs have what the engine prints.
        log = self._staffing.log_path(handle.index) if handle.is_here else None
        return handle.actor.load.remote(self._staffing.engine, placement, self._staffing.canaries, log)

    def _report_waiting(self) -> None:
        for handle in self._handles.values():
            is_late = time.monotonic() - handle.since > _PATIENCE_SECONDS
            if handle.location is None and is_late and not handle.is_told:
                handle.is_told = True
                _log.info(f"worker {handle.index} waits for Ray to find it {self._placer.needs}")

    def _discard(self, worker: int) -> None:
        handle = self._handles.pop(worker, None)
        if handle is not None:
            handle.discard()
