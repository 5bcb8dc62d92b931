"""Workers as Ray actors, one engine each, on this machine or on a cluster.

A worker has three states, each with one pending call to its actor: placing (`locate`), loading (`load`, with
the canaries) and running (`collect`, a long poll for outcomes).
"""

import itertools
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import ray

from synthia_batch.core.errors import PoolFailed
from synthia_batch.core.types import Request
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.workers.canary import Loaded
from synthia_batch.workers.engine import NO_REDUCTION, Placement, Reduction
from synthia_batch.workers.pools.base import (
    REPORTS_PER_WATCHDOG,
    PoolEvent,
    WorkerAdded,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    WorkerSpec,
    read_delivery,
)
from synthia_batch.workers.pools.ray_actor import STOP_SECONDS, Location
from synthia_batch.workers.pools.ray_handle import ActorHandle
from synthia_batch.workers.pools.ray_placement import Placer
from synthia_batch.workers.pools.ray_session import RaySession
from synthia_batch.workers.worker import Delivery

_log = logging.getLogger(__name__)

_COLLECT_SECONDS = 1.0
"""Limit of a long poll without an ended sample."""
_SPARE_SECONDS = 10.0
"""How long samples are kept for a worker that waits for resources."""
_REPORT_SECONDS = 30.0
"""How long a worker may wait for resources before this is reported."""
_GROWTH_SECONDS = 3.0
"""Interval between checks for new machines."""


class RayPool:
    """Implements `Pool`; see the module."""

    def __init__(self, spec: PoolSpec, worker_spec: WorkerSpec) -> None:
        self._spec = spec
        self._worker_spec = worker_spec
        self._collect_seconds = min(_COLLECT_SECONDS, spec.watchdog_seconds / REPORTS_PER_WATCHDOG)
        self._handles: dict[int, ActorHandle] = {}
        self._epochs = itertools.count(1)
        self._session = RaySession(spec)
        self._placer = Placer(worker_spec.engine, self._session, spec.engines_per_gpu)
        self._checked_at = 0.0
        self.size = spec.workers or 0  # Known once started.

    def start(self) -> None:
        """Join or start Ray, then place every worker."""
        self._session.open()
        most = self._placer.count_engines()
        self.size = self._spec.workers or most
        if self.size < 1:
            raise PoolFailed(
                f"an engine needs {self._placer.needs}, Ray has {self._placer.has}; `synthia-batch doctor` "
                "lists the visible GPUs. Use fewer GPUs per engine (--tensor-parallel-size, within one "
                "machine, or --pipeline-parallel-size, over several), or a larger cluster (--ray-address)"
            )
        if self.size > most and self._placer.takes_gpus and not self._session.can_grow:
            raise PoolFailed(
                f"{self.size} engines need {self._placer.needs} each, and Ray has {self._placer.has}; "
                f"some would wait for ever: use --workers {most}"
            )
        for worker in range(self.size):
            self.restart(worker)

    def renew(self, worker_spec: WorkerSpec) -> Sequence[PoolEvent]:
        """Have each actor adopt it, as soon as it is loaded."""
        self._worker_spec = worker_spec
        events: list[PoolEvent] = []
        for worker in range(self.size):
            handle = self._handles.get(worker)
            if handle is None:
                self.restart(worker)
                continue
            handle.epoch = next(self._epochs)
            handle.is_outdated = handle.is_loading
            if handle.is_loading:
                events.append(WorkerLoading(worker=worker, epoch=handle.epoch))
            elif handle.location is not None:
                handle.waits_to_load = True
        return events + self._start_loads()

    @property
    def unplaced(self) -> int:
        """Number of workers that have waited for resources for a while."""
        limit = time.monotonic() - _SPARE_SECONDS
        return sum(handle.location is None and handle.since < limit for handle in self._handles.values())

    def restart(self, worker: int, reduction: Reduction = NO_REDUCTION) -> None:
        """Place `worker` in a new actor. Ray waits for resources if necessary."""
        self.kill(worker)
        self._handles[worker] = ActorHandle(
            index=worker,
            epoch=next(self._epochs),
            reduction=reduction,
            reservation=self._placer.reserve(),
            session=self._session,
        )

    def kill(self, worker: int) -> None:
        """End the actor's process with SIGKILL, if it has one, and release its resources."""
        handle = self._handles.pop(worker, None)
        if handle is not None:
            handle.discard()

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        """Send `requests` in one message."""
        self._handles[worker].actor.feed.remote(tuple(requests))

    def recall(self, worker: int) -> None:
        self._handles[worker].actor.recall.remote()

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return the events of all answered calls, and start the next call of each of these workers."""
        events = self._grow() + self._start_loads()
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
                # At once: a process whose engine has died may still occupy GPU memory.
                self.kill(event.worker)
        self._report_waiting()
        return events

    def abort(self) -> None:
        """Make every loaded worker drop its unfinished requests."""
        for handle in self._handles.values():
            if handle.location is not None:
                handle.actor.abort.remote()

    def stop(self, at_once: bool = False) -> None:
        """Stop the loops, unless `at_once`; then end the processes, and Ray if this pool started it."""
        if not ray.is_initialized():
            return
        placed = [handle for handle in self._handles.values() if handle.location is not None]
        if placed and not at_once:
            stops = [handle.actor.stop.remote() for handle in placed]
            ray.wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
        for worker in list(self._handles):
            self.kill(worker)
        self._session.close()

    def _grow(self) -> list[PoolEvent]:
        """Start workers on machines that have joined, unless the job sets the number of workers."""
        now = time.monotonic()
        if self._spec.workers or not self._session.can_grow or now - self._checked_at < _GROWTH_SECONDS:
            return []
        self._checked_at = now
        added = range(self.size, self._placer.count_engines())
        for worker in added:
            self.restart(worker)
        self.size += len(added)
        return [WorkerAdded(worker=worker) for worker in added]

    def _advance(self, handle: ActorHandle) -> list[PoolEvent]:
        worker, epoch = handle.index, handle.epoch
        match handle.take_answer():
            case WorkerLost() as lost:
                return [lost]
            case Location():
                handle.waits_to_load = True
                return self._start_loads()
            case Loaded() if handle.is_outdated:
                handle.is_loading, handle.is_outdated, handle.waits_to_load = False, False, True
                return self._start_loads()
            case Loaded() as loaded:
                handle.is_loading = False
                handle.pending = handle.actor.collect.remote(self._collect_seconds, epoch)
                return [WorkerReady(worker=worker, epoch=epoch, facts=loaded.facts, canary=loaded.canary)]
            case Delivery() as delivery:
                if delivery.error is None:
                    handle.pending = handle.actor.collect.remote(self._collect_seconds, epoch)
                return read_delivery(worker, epoch, delivery)
            case None:
                return []
            case answer:
                raise TypeError(f"a worker answered {answer!r}")

    def _start_loads(self) -> list[PoolEvent]:
        """Start to load the engines that are placed, on each shared GPU one after the other.

        vLLM measures the GPU's free memory while loading, which another engine that loads would change.
        """
        events: list[PoolEvent] = []
        for handle in self._handles.values():
            location = handle.location
            if not handle.waits_to_load or location is None or self._is_gpu_busy(location):
                continue
            handle.waits_to_load, handle.is_loading = False, True
            handle.pending = self._load(handle, location)
            events.append(WorkerLoading(worker=handle.index, epoch=handle.epoch))
        return events

    def _is_gpu_busy(self, location: Location) -> bool:
        """Whether another engine is loading on the shared GPU at `location`."""
        return self._spec.engines_per_gpu > 1 and any(
            (other.location.node, other.location.gpus) == (location.node, location.gpus)
            for other in self._handles.values()
            if other.is_loading and other.location is not None
        )

    def _load(self, handle: ActorHandle, location: Location) -> Any:
        neighbours = [
            other
            for other in self._handles.values()
            if other is not handle and other.location and other.location.node == location.node
        ]
        handle.core = self._placer.choose_core(location, [other.core for other in neighbours])
        if handle.reservation.splits_a_stage:
            _log.info(
                f"worker {handle.index}: Ray had to place a tensor-parallel group on two machines, which is "
                "slow; machines with a multiple of --tensor-parallel-size GPUs avoid it"
            )
        placement = Placement(
            core=handle.core,
            neighbours=max(1, min(self.size, len(location.cores))),
            reduction=handle.reduction,
            spans_nodes=handle.reservation.spans_nodes,
            engines_per_gpu=self._spec.engines_per_gpu,
            user_threads=os.environ.get("OMP_NUM_THREADS"),
        )
        # On other machines Ray's own logs contain the output.
        log = self._worker_spec.log_path(handle.index) if handle.is_here else None
        spec = self._worker_spec
        return handle.actor.load.remote(spec.engine, placement, spec.canaries, log, handle.epoch)

    def _report_waiting(self) -> None:
        for handle in self._handles.values():
            is_late = time.monotonic() - handle.since > _REPORT_SECONDS
            if handle.location is None and is_late and not handle.is_wait_reported:
                handle.is_wait_reported = True
                _log.info(f"worker {handle.index} is waiting for {self._placer.needs} from Ray")
