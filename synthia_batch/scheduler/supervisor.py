"""What is said of lost workers: who died of what, what comes next, and what their logs end with.

The workers of a run as the driver sees them: welcomed, watched, buried, and started again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.errors import DeterminismBroken, PoolFailed
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.recorder import OutcomeSink
from synthia_batch.scheduler.restart_policy import RestartPolicy
from synthia_batch.workers.pools.base import Cause, Pool, WorkerAdded, WorkerLoading, WorkerLost, WorkerReady

_log = logging.getLogger(__name__)

LOG_TAIL_LINES = 20


def describe_loss(event: WorkerLost, unfinished: int, pause: float | None, has_less: bool, log: Path) -> str:
    """Return who died and what comes next. `pause`: seconds until it starts again, None if it never does.

    `has_less` says that it will have less memory; `unfinished` samples go back to the queue.
    """
    what = "is given up" if pause is None else f"starts again in {pause:.1f} s"
    if has_less and pause is not None:
        what += " with less memory: half the batch, or a smaller KV cache"
    how = event.cause.value
    if event.refused is not None:
        why, _, _ = str(event.refused).partition("\n")
        how = f"could not load its engine ({why})"
    return (
        f"worker {event.worker} {how} and {what}; {unfinished} unfinished samples go "
        f"back to the queue (log: {log})"
    )


def explain_failure(event: WorkerLost, log: Path) -> str:
    """Return why no worker is left, where the last one died as `event` says."""
    parts = ["no worker is left; what was finished is kept. The last one died of:", event.reason.strip()]
    tail = read_tail(log)
    if tail:
        parts += [f"the last lines of {log}:", tail]
    parts.append("mend the cause, then run the same command again")
    return "\n".join(parts)


def read_tail(log: Path) -> str:
    """Return the last lines of a worker's log; nothing where there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    except OSError:
        return ""


WorkerEvent = WorkerLoading | WorkerReady | WorkerLost | WorkerAdded


@dataclass(slots=True, kw_only=True)
class WorkerSupervisor:
    """Keeps the pool's workers at work. `say` tells a person, `recorder` the run's history.

    `check_canary` gets each worker's canary digest and raises DeterminismBroken on a wrong one.
    """

    pool: Pool
    policy: RestartPolicy
    dispatcher: Dispatcher
    recorder: OutcomeSink
    check_canary: Callable[[WorkerReady], object]
    log_path: Callable[[int], Path]
    clock: Callable[[], float]

    def register(self) -> None:
        """Count in the workers that the pool starts with."""
        for worker in range(self.pool.size):
            self.policy.register(worker)
        self.recorder.note("pool_started", workers=self.pool.size)

    def handle(self, event: WorkerEvent) -> None:
        """Do what a worker's news ask for; those of an earlier start ask for nothing.

        Raises:
            PoolFailed: That was the last worker.
            DeterminismBroken: Its canary answered otherwise than it must.
        """
        if isinstance(event, WorkerAdded):
            self.policy.register(event.worker)
            self._tell(f"worker {event.worker} joins: there is room for it", "worker_added", event)
        elif self.policy.is_news(event.worker, event.epoch):
            match event:
                case WorkerLoading():
                    self.policy.note_loading(event.worker, event.epoch, self.clock())
                    self.recorder.note("worker_loading", worker=event.worker, epoch=event.epoch)
                case WorkerReady():
                    self._mark_ready(event)
                case WorkerLost():
                    self._mark_dead(event)

    def kill_hung(self) -> None:
        """End the workers whose engines make no step, or do not load."""
        policy = self.policy
        policy.note_look(self.clock())
        for worker, epoch in policy.find_hung(self.dispatcher.busy, self.clock()):
            self._kill(worker, epoch, f"its engine made no step for {policy.watchdog_seconds:g} s")
        for worker, epoch in policy.find_stuck_loads(self.clock()):
            limit = policy.load_timeout_seconds
            self._kill(worker, epoch, f"its engine did not load in {limit:g} s (pool.load_timeout_seconds)")

    def restart_due(self) -> None:
        """Start the workers again whose pause is over."""
        for worker in self.policy.take_due(self.clock()):
            self.pool.restart(worker, self.policy.count_halvings(worker))

    def _mark_ready(self, event: WorkerReady) -> None:
        self.check_canary(event)
        self.policy.mark_ready(event.worker, event.epoch, self.clock())
        facts = event.facts
        self.dispatcher.add_worker(event.worker, facts.capacity)
        self.recorder.note(
            "worker_ready",
            worker=event.worker,
            epoch=event.epoch,
            engine=f"{facts.engine} {facts.version}",
            device=facts.device,
            capacity=facts.capacity,
        )

    def _kill(self, worker: int, epoch: int, reason: str) -> None:
        self.pool.kill(worker)
        self.handle(WorkerLost(worker=worker, epoch=epoch, reason=reason, cause=Cause.HUNG))

    def _mark_dead(self, event: WorkerLost) -> None:
        is_short = event.cause is Cause.OUT_OF_MEMORY
        dies_at_start = event.cause is Cause.DIED and self.policy.fails_to_load(event.worker)
        tries_less = is_short or (dies_at_start and event.refused is None)
        has_less = tries_less and self.policy.halve(event.worker)
        is_innocent = (is_short and has_less) or event.cause is Cause.NODE_LOST
        loss = self.dispatcher.remove_worker(event.worker, suspects_samples=not is_innocent)
        pause = self.policy.mark_dead(
            event.worker, event.epoch, is_strike=not (is_innocent or loss.narrowed), now=self.clock()
        )
        self._report_loss(event, loss.unfinished, pause, has_less)
        if event.refused is not None and self._ends_run(event.worker, event.refused):
            raise event.refused
        if pause is None or event.cause is Cause.NODE_LOST:
            self.dispatcher.give_up(event.worker)
        if not self.policy.staff:
            raise PoolFailed(explain_failure(event, self.log_path(event.worker)))

    def _ends_run(self, worker: int, refusal: Exception) -> bool:
        """Whether what refused `worker` its start would refuse it to all.

        Settings with which another engine has loaded are not wrong; nor are they a worker's own memory,
        halved so often that the model does not fit.
        """
        is_workers_own = self.policy.has_welcomed or self.policy.count_halvings(worker) > 0
        return isinstance(refusal, DeterminismBroken) or not is_workers_own

    def _report_loss(self, event: WorkerLost, unfinished: int, pause: float | None, has_less: bool) -> None:
        """Say who died and what comes next; the history also gets the evidence."""
        log = self.log_path(event.worker)
        self._tell(
            describe_loss(event, unfinished, pause, has_less, log),
            "worker_lost",
            event,
            unfinished=unfinished,
            cause=event.cause.name.lower(),
            epoch=event.epoch,
            is_given_up=pause is None,
            reason=event.reason.strip(),
            log_tail=read_tail(log),
        )

    def _tell(self, text: str, kind: str, event: WorkerLost | WorkerAdded, **fields: Any) -> None:
        """Say what happened to a worker, to the person and to the run's history."""
        self.recorder.note(kind, worker=event.worker, **fields)
        _log.info(text)
