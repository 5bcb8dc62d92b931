"""The worker's side of the Ray pool: an actor, which is one process with one engine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from synthia_batch.core.files import open_to_append
from synthia_batch.core.hardware import list_cores
from synthia_batch.core.types import Request
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers import load_engine
from synthia_batch.workers.canary import Canaries, CanaryAnswer, run_canaries
from synthia_batch.workers.engine import EngineFacts, Placement
from synthia_batch.workers.worker import Delivery, Worker

STOP_SECONDS = 10.0
"""Limit for the end of a loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where Ray has placed a worker. `cores` are those that its process may use."""

    node: str
    pid: int
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded engine's facts, and its answer to the canaries, if they were run."""

    facts: EngineFacts
    canary: CanaryAnswer | None


class EngineActor:
    """A worker in its own process. Its methods run in several threads."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._ends_with_process = False

    def locate(self) -> Location:
        """Return the location of this process."""
        return Location(node=ray.get_runtime_context().get_node_id(), pid=os.getpid(), cores=list_cores())

    def load(
        self, spec: EngineSpec, placement: Placement, canaries: Canaries | None, log: Path | None
    ) -> Loaded:
        """Load the engine, run the canaries and start its loop. Its output goes to `log`."""
        if log is not None:
            _redirect_output(log)
        if placement.spans_nodes:
            # vLLM's core is a child process that joins the cluster itself.
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        engine = load_engine(spec, placement)
        canary = run_canaries(engine, canaries) if canaries else None
        facts = engine.facts
        self._ends_with_process = facts.ends_with_process
        self._worker = Worker(engine)
        self._worker.start()
        return Loaded(facts=facts, canary=canary)

    def feed(self, requests: Sequence[Request]) -> None:
        """Queue `requests` for the engine."""
        self._loaded().feed(requests)

    def recall(self) -> None:
        """Recall what the engine has not started."""
        self._loaded().recall()

    def collect(self, wait_seconds: float) -> Delivery:
        """Return what ended since the last call; see `Worker`."""
        return self._loaded().collect(wait_seconds)

    def abort(self) -> None:
        """Drop all unfinished requests."""
        self._loaded().abort()

    def stop(self) -> None:
        """End the loop and free the device, unless ending this process is enough.

        The pool ends the process next. Closing a CPU engine first would take a second longer, because vLLM
        collects garbage twice.
        """
        if self._worker is not None and not self._ends_with_process:
            self._worker.stop(STOP_SECONDS)

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
