"""The worker's side of the Ray pool: an actor, which is one process with one engine."""

import os
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray

from synthia_batch.core.files import open_to_append
from synthia_batch.core.hardware import list_cores
from synthia_batch.core.types import Request
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers import load_engine
from synthia_batch.workers.canary import Canaries, Loaded, adopt_spec, run_canaries
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.environment import starts_processes
from synthia_batch.workers.pools.guard import ENGINE_MARK, Guard
from synthia_batch.workers.worker import Delivery, Worker

STOP_SECONDS = 10.0
"""Limit for the end of a loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where Ray has placed a worker. `cores` are those that its process may use, `gpus` those assigned."""

    node: str
    pid: int
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()


class EngineActor:
    """A worker in its own process. Its methods run in several threads."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._ends_with_process = False
        self._guard = Guard(ENGINE_MARK)

    def locate(self) -> Location:
        context = ray.get_runtime_context()
        gpus = tuple(map(str, context.get_accelerator_ids().get("GPU", ())))
        return Location(node=context.get_node_id(), pid=os.getpid(), cores=list_cores(), gpus=gpus)

    def load(
        self, spec: EngineSpec, placement: Placement, canaries: Canaries | None, log: Path | None, epoch: int
    ) -> Loaded:
        """Load the engine, run the canaries and start its loop. Its output goes to `log`.

        An engine that is loaded is used for `spec`, which it loads like, and for the new `epoch`.
        """
        if self._worker is not None:
            return self._adopt(self._worker, spec, canaries, log, epoch)
        if log is not None:
            _redirect_output(log)
        if placement.spans_nodes:
            # vLLM's core is a child process that joins the cluster itself.
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        try:
            with self._open_guard(spec):
                engine = load_engine(spec, placement)
            canary = run_canaries(engine, canaries) if canaries else None
        except BaseException:
            traceback.print_exc()  # The driver's message has one line of it.
            raise
        facts = engine.facts
        self._ends_with_process = facts.ends_with_process
        self._worker = Worker(engine, epoch=epoch)
        self._worker.start()
        return Loaded(facts=facts, canary=canary)

    def _adopt(
        self, worker: Worker, spec: EngineSpec, canaries: Canaries | None, log: Path | None, epoch: int
    ) -> Loaded:
        if log is not None:
            before = os.readlink("/proc/self/fd/1")
            with os.fdopen(open_to_append(log), "a") as file:
                file.write(f"the engine was loaded for an earlier run: {before}\n")
            if not starts_processes(spec):  # Its processes go on writing where they began.
                _redirect_output(log)

        try:
            return worker.renew(epoch, partial(adopt_spec, spec=spec, canaries=canaries))
        except BaseException:
            traceback.print_exc()
            raise

    def feed(self, requests: Sequence[Request]) -> None:
        self._loaded().feed(requests)

    def recall(self) -> None:
        self._loaded().recall()

    def collect(self, wait_seconds: float, epoch: int) -> Delivery:
        """Return what ended since the last call; see `Worker`."""
        return self._loaded().collect(wait_seconds, epoch)

    def abort(self) -> None:
        """Drop all unfinished requests; an engine that is still loading has none."""
        if self._worker is not None:
            self._worker.abort()

    def stop(self) -> None:
        """End the loop and free the device, unless ending this process is enough.

        The pool ends the process next. Closing a CPU engine first would take a second longer, because vLLM
        collects garbage twice.
        """
        if self._worker is not None and not self._ends_with_process:
            self._worker.stop(STOP_SECONDS)

    def _open_guard(self, spec: EngineSpec) -> AbstractContextManager[None]:
        """Return the block in which the engine's processes start, so that they end with this one.

        Ray ends an actor whose driver is gone, also on a cluster, but not what the actor has started.
        """
        if not starts_processes(spec):
            return nullcontext()
        self._guard.start()
        return self._guard.marked()

    def _loaded(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("the engine is not loaded yet")
        return self._worker


def _redirect_output(log: Path) -> None:
    """Redirect all output of this process to `log`, including that of libraries and crashes."""
    descriptor = open_to_append(log)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
