"""Ad-hoc runs: requests generated without a run directory, for `tune` and `verify --rerun`."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.events import Subscriber, ignore_event
from synthia_batch.core.log import mute_log
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.core.types import Outcome, Request
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.scheduler.dispatcher import Dispatcher
from synthia_batch.scheduler.driver import Driver, OutcomeSink
from synthia_batch.scheduler.multi_turn import Step, record_as_it_is
from synthia_batch.scheduler.order import choose_order
from synthia_batch.workers.canary import Canaries
from synthia_batch.workers.pools import open_pool
from synthia_batch.workers.pools.base import WorkerReady, WorkerSpec
from synthia_batch.workers.pools.startup import StartedPool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdHocRun:
    """How to generate: as `job` does, with `settings` overriding those of its engine.

    `sink` gets the records that `advance` makes of an engine's outcomes. Each engine answers `canaries`,
    if there are some, and `check_canary` checks the answers.
    """

    job: ResolvedJob
    sink: OutcomeSink
    drain: DrainRequest
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    canaries: Canaries | None = None
    check_canary: Callable[[WorkerReady], object] = lambda ready: None
    advance: Callable[[Outcome], Step] = record_as_it_is
    publish: Subscriber = ignore_event


def run_requests(ad_hoc: AdHocRun, requests: Sequence[Request]) -> DrainReason | None:
    """Generate `requests`; return why the run stopped before the end, None if it did not.

    Engines load and end within the call; their logs go to a temporary directory.
    """
    settings = {**ad_hoc.job.engine.settings, **ad_hoc.settings}
    job = dataclasses.replace(ad_hoc.job, engine=dataclasses.replace(ad_hoc.job.engine, settings=settings))
    with tempfile.TemporaryDirectory(prefix="synthia-batch-") as logs:

        def log_path(index: int) -> Path:
            return Path(logs) / f"worker-{index}.log"

        worker_spec = WorkerSpec(engine=job.engine, canaries=ad_hoc.canaries, log_path=log_path)
        pool = open_pool(job.pool, worker_spec)
        driver = Driver(
            sink=ad_hoc.sink,
            publish=ad_hoc.publish,
            drain=ad_hoc.drain,
            watchdog_seconds=job.pool.watchdog_seconds,
            load_timeout_seconds=job.pool.load_timeout_seconds,
            check_canary=ad_hoc.check_canary,
            log_path=log_path,
            advance=ad_hoc.advance,
        )
        dispatcher = Dispatcher(iter(requests), len(requests), order=choose_order(job))
        is_over = False
        try:
            pool.start()
            # The caller reports on its requests; restarts of workers are of no interest.
            with mute_log("synthia_batch.scheduler"):
                reason = driver.run(dispatcher, lambda: StartedPool(pool=pool))
            is_over = True
            return reason
        finally:
            pool.stop(at_once=not is_over)
