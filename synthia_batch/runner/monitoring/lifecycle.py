"""The frame of a run: metrics during it, its deadline, and a notification of its end."""

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

from synthia_batch.core.errors import SynthiaBatchError
from synthia_batch.core.events import EventBus
from synthia_batch.core.formatting import format_seconds
from synthia_batch.core.shutdown import DrainRequest
from synthia_batch.job.loading.command_line import read_command
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.schema import Job
from synthia_batch.job.units import find_next
from synthia_batch.results.read.status import read_status
from synthia_batch.runner.monitoring.result import Ending

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from synthia_batch.runner.monitoring.notify import Notifier

EXIT_BUG = 1


@contextmanager
def follow_run(job: ResolvedJob, events: EventBus) -> Iterator[Callable[[Ending], None]]:
    """Serve the job's metrics during the block, and send its notifications afterwards.

    Call the yielded function with the run's end. An exception that leaves the block is reported as well;
    a second Ctrl-C is not, since somebody is at the keyboard.

    Raises:
        UsageError: An address, a port or a package is missing or wrong. Nothing has begun.
    """
    notifier = _open_notifier(job)
    started = time.monotonic()
    endings: list[Ending] = []
    try:
        with ExitStack() as stack:
            if job.declared.metrics_port is not None:
                from synthia_batch.runner.monitoring.metrics import HOST, serve_metrics

                port = job.declared.metrics_port
                events.subscribe(stack.enter_context(serve_metrics(port, job.name, job.fingerprint)))
                _log.info(f"metrics: http://{HOST}:{port}/metrics")
            yield endings.append
    except Exception as exc:
        endings = [_describe_error(job, exc)]
        raise
    finally:
        if notifier is not None and endings:
            _send(notifier, job, endings[-1], time.monotonic() - started)


def _open_notifier(job: ResolvedJob) -> "Notifier | None":
    if not job.declared.notify:
        return None
    from synthia_batch.runner.monitoring.notify import Notifier

    return Notifier(job.declared.notify, os.environ)


def _describe_error(job: ResolvedJob, error: Exception) -> Ending:
    counts = ""
    with suppress(SynthiaBatchError):
        found = read_status(job.output)
        counts = f"{found.finished} of {found.samples} samples finished, {found.failed} failed"
    return Ending(
        state=f"ended by an error: {(str(error) or type(error).__name__).splitlines()[0]}",
        exit_code=error.exit_code if isinstance(error, SynthiaBatchError) else EXIT_BUG,
        counts=counts,
        is_complete=False,
    )


def _send(notifier: "Notifier", job: ResolvedJob, ending: Ending, seconds: float) -> None:
    lines = [ending.counts, f"{format_seconds(seconds)}, exit code {ending.exit_code}", job.place]
    command = read_command()
    if ending.is_complete:
        lines.append(f"next: synthia-batch report {job.output}")
    elif command is not None:
        lines.append(f"next: {shlex.join(command)}")
    notifier.send(f"{job.name}: {ending.state}", "\n".join(line for line in lines if line))


def open_drain(job: Job, now: datetime | None = None) -> DrainRequest:
    """Return a drain request with the job's deadline, counted from `now`, and log the deadline."""
    now = now or datetime.now().astimezone()
    stop = None if job.stop_at is None else find_next(job.stop_at, now)
    drain = DrainRequest(job.deadline, stop_time=None if stop is None else stop.timestamp())
    if job.deadline is not None or stop is not None:
        _log.info(_describe(drain.seconds_left, now))
    return drain


def _describe(seconds: float, now: datetime) -> str:
    # Computed in UTC: a night in which the clocks change is an hour longer or shorter.
    when = datetime.fromtimestamp(round(now.timestamp() + seconds)).astimezone()
    day = "" if when.date() == now.date() else f" on {when:%A}"
    return (
        f"stops by {when:%H:%M:%S}{day}, in {format_seconds(seconds)}: samples in flight finish by then, "
        "and the same command resumes the run"
    )
