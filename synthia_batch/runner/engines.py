"""The pool of a run, and engines that stay loaded for the next run of a pipeline."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.directory.canary_record import list_canaries
from synthia_batch.storage.layout import RunDir
from synthia_batch.workers.pools import open_pool
from synthia_batch.workers.pools.base import Pool, WorkerSpec
from synthia_batch.workers.pools.startup import PoolStarter

_log = logging.getLogger(__name__)


def start_pool(job: ResolvedJob) -> PoolStarter:
    """Return a starter of the job's pool, which begins on request and stops the pool in the end."""

    def make_pool() -> Pool:
        return open_pool(job.pool, _specify_worker(job))

    return PoolStarter(make_pool, log_path=RunDir(job.output).worker_log)


class KeptEngines:
    """The engines of one run after another; those that the next run can use stay loaded.

    A context manager: its exit ends them. An error in a run ends them, too.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._starter: PoolStarter | None = None
        self._job: ResolvedJob | None = None

    @contextmanager
    def lend(self, job: ResolvedJob) -> Iterator[PoolStarter]:
        """Return what `start_pool` does, for the length of the job's run."""
        with ExitStack() as on_error:
            on_error.push(self)
            if self._starter is not None and self._starter.has_begun and self._can_serve(job):
                _log.info("the engines stay loaded")
                self._starter.renew(_specify_worker(job))
            else:
                self._end()
                self._starter = self._stack.enter_context(start_pool(job))
            self._job = job
            yield self._starter
            on_error.pop_all()

    def _can_serve(self, job: ResolvedJob) -> bool:
        return (
            self._job is not None and self._job.pool == job.pool and job.engine.loads_like(self._job.engine)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the engines; on a second Ctrl-C, which arrives as KeyboardInterrupt, at once."""
        self._starter = None
        self._stack.__exit__(kind, error, trace)

    def _end(self) -> None:
        self.__exit__(None, None, None)


def _specify_worker(job: ResolvedJob) -> WorkerSpec:
    log_path = RunDir(job.output).worker_log
    return WorkerSpec(engine=job.engine, canaries=list_canaries(job), log_path=log_path)
