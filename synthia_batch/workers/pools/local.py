"""Workers as threads of this process, without Ray: for scripted engines or a single vLLM engine."""

import contextlib
import itertools
import logging
import os
import queue
import threading
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TextIO

from synthia_batch.core.errors import EngineOutOfMemory, PoolFailed, SynthiaBatchError, UsageError
from synthia_batch.core.files import open_to_append
from synthia_batch.core.types import Request
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.workers import load_engine
from synthia_batch.workers.canary import adopt_spec, run_canaries
from synthia_batch.workers.engine import NO_REDUCTION, Placement, Reduction
from synthia_batch.workers.pools.base import (
    REPORTS_PER_WATCHDOG,
    Cause,
    PoolEvent,
    WorkerAdded,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    WorkerSpec,
    read_delivery,
)
from synthia_batch.workers.worker import Worker

_COLLECT_SECONDS = 0.5
_STOP_SECONDS = 30.0


class LocalPool:
    """Implements `Pool`; see the module. Each worker has a thread that collects from it."""

    unplaced = 0
    """Threads do not wait for resources."""

    def __init__(self, spec: PoolSpec, worker_spec: WorkerSpec) -> None:
        self.size = spec.workers or 1
        self._worker_spec = worker_spec
        self._shares_gpus = spec.engines_per_gpu > 1
        self._collect_seconds = min(_COLLECT_SECONDS, spec.watchdog_seconds / REPORTS_PER_WATCHDOG)
        self._events: queue.SimpleQueue[PoolEvent] = queue.SimpleQueue()
        self._workers: dict[int, Worker] = {}
        self._epochs = itertools.count(1)
        self._first_epoch = 0
        self._present: dict[int, int] = {}
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        # One that a renewal found loading must be closed before the next is loaded.
        is_alone = worker_spec.engine.kind == "vllm"
        self._holding_one: AbstractContextManager[object] = threading.Lock() if is_alone else nullcontext()

    def start(self) -> None:
        if self._worker_spec.engine.kind == "vllm" and self.size > 1:
            raise UsageError("--pool local holds one vLLM engine; leave out --workers, or use --pool ray")
        if self._shares_gpus:
            raise UsageError("--pool local has one engine; leave out pool.engines_per_gpu, or use --pool ray")
        for worker in range(self.size):
            self.restart(worker)

    def restart(self, worker: int, reduction: Reduction = NO_REDUCTION) -> None:
        self._start(worker, reduction)

    def _start(self, worker: int, reduction: Reduction, *, renews: bool = False) -> None:
        with self._changing:
            loaded = self._workers.get(worker) if renews else None
            epoch = self._present[worker] = next(self._epochs)
        name = f"worker-{worker}"
        placement = Placement(reduction=reduction, user_threads=os.environ.get("OMP_NUM_THREADS"))
        args = (worker, epoch, placement, loaded)
        threading.Thread(target=self._run, args=args, name=name, daemon=True).start()

    def renew(self, worker_spec: WorkerSpec) -> Sequence[PoolEvent]:
        """Start a thread for each worker, which takes over its engine."""
        self._worker_spec = worker_spec
        self._first_epoch = next(self._epochs)
        for worker in range(self.size):
            self._start(worker, NO_REDUCTION, renews=True)
        return ()

    def kill(self, worker: int) -> None:
        """Abandon the thread of `worker`, which continues until the process ends.

        Raises:
            PoolFailed: It has a vLLM engine, and a process can hold only one.
        """
        if self._worker_spec.engine.kind == "vllm":
            raise PoolFailed(
                "the engine hangs, and --pool local cannot end it; finished samples are kept. Run the same "
                "command with --pool ray, which runs each engine in its own process"
            )
        with self._changing:
            del self._present[worker]
            self._workers.pop(worker, None)

    def feed(self, worker: int, requests: Sequence[Request]) -> None:
        self._workers[worker].feed(requests)

    def recall(self, worker: int) -> None:
        self._workers[worker].recall()

    def poll(self, timeout_seconds: float) -> Sequence[PoolEvent]:
        """Return all queued events, waiting for the first."""
        events: list[PoolEvent] = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=timeout_seconds))
            while True:
                events.append(self._events.get_nowait())
        first = self._first_epoch
        return [event for event in events if isinstance(event, WorkerAdded) or event.epoch >= first]

    def abort(self) -> None:
        for worker in list(self._workers.values()):  # Worker threads add and remove themselves.
            worker.abort()

    def stop(self, at_once: bool = False) -> None:
        """End every loop; `at_once`: do not wait for the current steps."""
        self._stopping.set()
        for worker in list(self._workers.values()):  # Worker threads add and remove themselves.
            worker.stop(0 if at_once else _STOP_SECONDS)

    def _run(self, index: int, epoch: int, placement: Placement, loaded: Worker | None) -> None:
        self._events.put(WorkerLoading(worker=index, epoch=epoch))
        try:
            if self._worker_spec.engine.kind == "vllm":
                _send_logs_to(self._worker_spec.log_path(index))
            if loaded is not None:
                worker: Worker | None = self._renew(loaded, index, epoch)
            else:
                with self._holding_one:
                    worker = self._load(index, epoch, placement)
            if worker is None:
                return
            while not self._stopping.is_set() and self._present.get(index) == epoch:
                delivery = worker.collect(self._collect_seconds, epoch)
                for event in read_delivery(index, epoch, delivery):
                    self._events.put(event)
                if delivery.error is not None:
                    return
        except EngineOutOfMemory:
            reason = traceback.format_exc()
            self._events.put(WorkerLost(worker=index, epoch=epoch, reason=reason, cause=Cause.OUT_OF_MEMORY))
        except BaseException as exc:  # Whatever ended it, the driver must learn of it.
            refused = exc if isinstance(exc, SynthiaBatchError) else None
            if loaded is not None:
                loaded.stop(0)  # What is started instead must have its memory.
            reason = traceback.format_exc()
            if self._worker_spec.engine.kind == "vllm":
                logging.getLogger("vllm").error(reason)
            self._events.put(WorkerLost(worker=index, epoch=epoch, reason=reason, refused=refused))

    def _load(self, index: int, epoch: int, placement: Placement) -> Worker | None:
        """Return the worker once its engine is loaded; None if it was abandoned meanwhile."""
        spec = self._worker_spec
        engine = load_engine(spec.engine, placement)
        canary = run_canaries(engine, spec.canaries) if spec.canaries else None
        with self._changing:
            if self._present.get(index) != epoch:
                engine.close()
                return None
            worker = Worker(engine, epoch=epoch)
            worker.start()
            # Registered only once started: `stop` may be called any time and joins its thread.
            self._workers[index] = worker
        self._events.put(WorkerReady(worker=index, epoch=epoch, facts=engine.facts, canary=canary))
        return worker

    def _renew(self, worker: Worker, index: int, epoch: int) -> Worker:
        spec = self._worker_spec
        ready = worker.renew(epoch, partial(adopt_spec, spec=spec.engine, canaries=spec.canaries))
        self._events.put(WorkerReady(worker=index, epoch=epoch, facts=ready.facts, canary=ready.canary))
        return worker


class _LogFile(logging.StreamHandler[TextIO]):
    """Writes to the log of a worker."""


def _send_logs_to(path: Path) -> None:
    """Make vLLM, which is not imported yet, log to `path` instead of the terminal."""
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    handler = _LogFile(os.fdopen(open_to_append(path), "a"))
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s"))
    logger = logging.getLogger("vllm")
    for earlier in [one for one in logger.handlers if isinstance(one, _LogFile)]:
        logger.removeHandler(earlier)
        earlier.stream.close()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
