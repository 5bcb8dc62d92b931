"""The driver's side of one worker: its actor, the pending call and its result."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from synthia_batch.core.errors import EngineOutOfMemory, SynthiaBatchError
from synthia_batch.workers.engine import Reduction
from synthia_batch.workers.pools.base import Cause, WorkerLost
from synthia_batch.workers.pools.process_tree import kill_descendants
from synthia_batch.workers.pools.ray_actor import Location
from synthia_batch.workers.pools.ray_placement import Reservation
from synthia_batch.workers.pools.ray_session import RaySession

_DOUBT_SECONDS = 30.0
"""Limit for Ray to find out why an actor does not answer. Longer than its health checks."""
_PROBE_SECONDS = 0.5


@dataclass(slots=True, kw_only=True)
class ActorHandle:
    """One start of one worker.

    `location` is None while it waits for resources. It `waits_to_load` while another engine on its GPU is
    loading. It `is_outdated` if it is loading for a job that has ended. `_pid` is that of its process while
    it is known to live. `_doubt` is set from when the actor stops answering until Ray knows why.
    """

    index: int
    epoch: int
    reduction: Reduction
    reservation: Reservation
    session: RaySession
    actor: Any = field(init=False)
    pending: Any = field(init=False)
    location: Location | None = None
    core: int | None = None
    since: float = field(default_factory=time.monotonic)
    is_wait_reported: bool = False
    waits_to_load: bool = False
    is_loading: bool = False
    is_outdated: bool = False
    _pid: int | None = None
    _doubt: Exception | None = None
    _doubted_at: float = 0.0
    _probed_at: float = 0.0

    def __post_init__(self) -> None:
        self.actor = self.reservation.start_actor()
        self.pending = self.actor.locate.remote()

    @property
    def is_here(self) -> bool:
        """Whether the worker is on the driver's machine."""
        return self.location is not None and self.location.node == str(
            ray.get_runtime_context().get_node_id()
        )

    def take_answer(self) -> Any:
        """Return the result of the pending call, which has ended: its answer, or a WorkerLost.

        None if the actor did not answer for an unknown reason: see `settle_doubt`.
        """
        call, self.pending = self.pending, None
        try:
            answer = ray.get(call)
        except ActorUnavailableError as exc:
            now = time.monotonic()
            if self._doubt is None:
                self._doubt, self._doubted_at = exc, now
            self._probed_at = now
            return None
        except (RayError, SynthiaBatchError) as exc:
            return self._explain_loss(exc)
        if self._doubt is not None:
            # It is alive, but the answers in between are lost, perhaps with samples.
            return self._lose(self._doubt, Cause.NODE_LOST)
        if isinstance(answer, Location):
            self.location, self._pid = answer, answer.pid
        return answer

    def settle_doubt(self) -> WorkerLost | None:
        """Probe an actor that does not answer until Ray knows whether it or its machine is gone.

        A worker restarted earlier would be placed on the lost machine.
        """
        now = time.monotonic()
        if self._doubt is None or self.pending is not None or now - self._probed_at < _PROBE_SECONDS:
            return None
        if self._is_node_lost():
            return self._lose(self._doubt, Cause.NODE_LOST)
        if now - self._doubted_at > _DOUBT_SECONDS:
            return self._lose(self._doubt, Cause.DIED)
        self.pending = self.actor.locate.remote()
        return None

    def discard(self) -> None:
        """End the actor's process at once, its descendants first, and release its resources.

        A GPU engine's core is one of them, and keeps its memory if it outlives the actor.
        """
        if self._pid is not None and self.is_here:
            kill_descendants(self._pid)
        ray.kill(self.actor)
        if self._pid is not None and self.is_here:
            # Ray makes the process end itself, which a stopped process does not do.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGKILL)
        self.reservation.release()

    def _explain_loss(self, exc: Exception) -> WorkerLost:
        """Distinguish a worker that died from one that can never start."""
        if not isinstance(exc, RayTaskError):
            self._pid = None
        error = exc.cause if isinstance(exc, RayTaskError) else exc
        if isinstance(error, (EngineOutOfMemory, OutOfMemoryError)):
            return self._lose(exc, Cause.OUT_OF_MEMORY)
        if isinstance(error, SynthiaBatchError):
            return self._lose(exc, Cause.DIED, refused=error)
        return self._lose(exc, Cause.NODE_LOST if self._is_node_lost() else Cause.DIED)

    def _lose(self, exc: Exception, cause: Cause, refused: SynthiaBatchError | None = None) -> WorkerLost:
        self._doubt = None
        return WorkerLost(worker=self.index, epoch=self.epoch, reason=str(exc), cause=cause, refused=refused)

    def _is_node_lost(self) -> bool:
        return self.location is not None and not self.session.is_alive(self.location.node)
