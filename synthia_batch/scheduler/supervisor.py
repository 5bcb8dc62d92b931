"""The workers of a run: registered, watched, restarted, given up, and what is logged about it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.errors import DeterminismBroken, PoolFailed
from synthia_batch.core.events import Subscriber
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.events import EngineLoading, EngineLost, EngineReady, PoolStarted, WorkerJoined
from synthia_batch.scheduler.restart_policy import RestartPolicy
from synthia_batch.workers.pools.base import (
    Cause,
    Pool,
    WorkerAdded,
    WorkerLoading,
    WorkerLost,
    WorkerReady,
    log_refusal,
)

_log = logging.getLogger(__name__)

LOG_TAIL_LINES = 20

WorkerEvent = WorkerLoading | WorkerReady | WorkerLost | WorkerAdded


@dataclass(slots=True, kw_only=True)
class WorkerSupervisor:
    """Keeps the pool's workers running, as `policy` decides, and publishes what happens to them.

    `check_canary` gets each worker's canary digest and raises DeterminismBroken on a wrong one.
    """

    pool: Pool
    policy: RestartPolicy
    dispatcher: Dispatcher
    publish: Subscriber
    check_canary: Callable[[WorkerReady], object]
    log_path: Callable[[int], Path]
    clock: Callable[[], float]

    @property
    def sharing(self) -> int:
        """The number of workers that share the job: placed, and not given up. At least 1."""
        return max(1, self.policy.live_workers - self.pool.unplaced)

    def register(self) -> None:
        for worker in range(self.pool.size):
            self.policy.register(worker)
        self.publish(PoolStarted(workers=self.pool.size))

    def handle(self, event: WorkerEvent) -> None:
        """Act on a worker's message, unless it comes from an epoch that is known to be dead."""
        if isinstance(event, WorkerAdded):
            self.policy.register(event.worker)
            self.publish(WorkerJoined(worker=event.worker))
            _log.info(f"worker {event.worker} joins: there is room for it")
        elif self.policy.is_news(event.worker, event.epoch):
            match event:
                case WorkerLoading():
                    self.policy.mark_loading(event.worker, event.epoch, self.clock())
                    self.publish(EngineLoading(worker=event.worker, epoch=event.epoch))
                case WorkerReady():
                    self._mark_ready(event)
                case WorkerLost():
                    self._mark_dead(event)

    def check(self) -> None:
        """Kill workers that hang and restart those whose pause is over."""
        policy = self.policy
        policy.note_look(self.clock())
        for worker, epoch in policy.find_hung(self.dispatcher.busy, self.clock()):
            self._kill(worker, epoch, f"its engine made no step for {policy.watchdog_seconds:g} s")
        for worker, epoch in policy.find_stuck_loads(self.clock()):
            limit = policy.load_timeout_seconds
            self._kill(worker, epoch, f"its engine did not load in {limit:g} s (pool.load_timeout_seconds)")
        for worker in policy.take_due(self.clock()):
            self.pool.restart(worker, policy.get_reduction(worker))

    def _mark_ready(self, event: WorkerReady) -> None:
        self.check_canary(event)
        facts = event.facts
        self.policy.mark_ready(event.worker, event.epoch, self.clock(), facts.max_num_seqs)
        self.dispatcher.add_worker(event.worker, facts.capacity)
        self.publish(
            EngineReady(
                worker=event.worker,
                epoch=event.epoch,
                engine=f"{facts.engine} {facts.version}",
                device=facts.device,
                capacity=facts.capacity,
            )
        )

    def _kill(self, worker: int, epoch: int, reason: str) -> None:
        self.pool.kill(worker)
        self.handle(WorkerLost(worker=worker, epoch=epoch, reason=reason, cause=Cause.HUNG))

    def _mark_dead(self, event: WorkerLost) -> None:
        is_short = event.cause is Cause.OUT_OF_MEMORY
        dies_at_start = event.cause is Cause.DIED and self.policy.fails_to_load(event.worker)
        tries_less = is_short or (dies_at_start and event.refused is None)
        is_loading = not self.policy.is_ready(event.worker)
        has_less = tries_less and self.policy.reduce(event.worker)
        is_innocent = (is_short and has_less) or event.cause is Cause.NODE_LOST
        removal = self.dispatcher.remove_worker(event.worker, suspects_samples=not is_innocent)
        pause = self.policy.mark_dead(
            event.worker,
            event.epoch,
            is_strike=not (is_innocent or removal.narrowed),
            now=self.clock(),
            is_last=is_short and is_loading and not has_less,
        )
        ends_run = event.refused is not None and self._ends_run(event.worker, event.refused)
        self._report_loss(event, removal.unfinished, None if ends_run else pause, has_less, ends_run=ends_run)
        if event.refused is not None and ends_run:
            raise event.refused
        if pause is None or event.cause is Cause.NODE_LOST:
            self.dispatcher.give_up(event.worker)
        if not self.policy.live_workers:
            raise PoolFailed(explain_failure(event, self.log_path(event.worker)))

    def _ends_run(self, worker: int, refusal: Exception) -> bool:
        """Whether the error with which `worker` refused to start would stop every worker.

        Settings with which another engine has loaded are not wrong. Nor are they wrong if this
        worker's own memory was reduced so often that the model does not fit.
        """
        is_workers_own = self.policy.has_loaded_any or self.policy.get_reduction(worker).total > 0
        return isinstance(refusal, DeterminismBroken) or not is_workers_own

    def _report_loss(
        self, event: WorkerLost, unfinished: int, pause: float | None, has_less: bool, *, ends_run: bool
    ) -> None:
        """Log which worker died and what comes next; the event also has the evidence."""
        log = self.log_path(event.worker)
        self.publish(
            EngineLost(
                worker=event.worker,
                unfinished=unfinished,
                cause=event.cause.name.lower(),
                epoch=event.epoch,
                is_given_up=pause is None,
                reason=event.reason.strip(),
                log_tail=read_tail(log),
            )
        )
        if ends_run:
            log_refusal(event, log)
        else:
            _log.info(describe_loss(event, unfinished, pause, has_less, log))


def describe_loss(event: WorkerLost, unfinished: int, pause: float | None, has_less: bool, log: Path) -> str:
    """Return which worker died and what comes next.

    `pause` is in seconds until the restart, None if there is none. `has_less`: it will have less
    memory. `unfinished` samples go back to the queue.
    """
    following = "is given up" if pause is None else f"starts again in {pause:.1f} s"
    if has_less and pause is not None:
        following += " with less memory: a smaller KV cache, or half the batch"
    cause = event.cause.value
    if event.refused is not None:
        reason, _, _ = str(event.refused).partition("\n")
        cause = f"could not load its engine ({reason})"
    return (
        f"worker {event.worker} {cause} and {following}; {unfinished} unfinished samples go "
        f"back to the queue (log: {log})"
    )


def explain_failure(event: WorkerLost, log: Path) -> str:
    """Return why no worker is left, from the death of the last one."""
    parts = ["no worker is left; finished samples are kept. The last worker died of:", event.reason.strip()]
    tail = read_tail(log)
    if tail:
        parts += [f"the last lines of {log}:", tail]
    parts.append("fix the cause, then run the same command again")
    return "\n".join(parts)


def read_tail(log: Path) -> str:
    """Return the last lines of a worker's log, empty if there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    except OSError:
        return ""
