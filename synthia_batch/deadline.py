"""When a run is to stop by itself: after some time, at a time of day, or at the earlier of both."""

from collections.abc import Callable
from datetime import datetime

from synthia_batch.core.formatting import format_seconds
from synthia_batch.core.shutdown import DrainRequest
from synthia_batch.job.schema import Job
from synthia_batch.job.units import find_next


def open_drain(job: Job, say: Callable[[str], None], now: datetime | None = None) -> DrainRequest:
    """Return the request to drain by the job's deadline, which counts from `now`, and say when that is."""
    now = now or datetime.now().astimezone()
    stop = None if job.stop_at is None else find_next(job.stop_at, now)
    drain = DrainRequest(job.deadline, stop_time=None if stop is None else stop.timestamp())
    if job.deadline is not None or stop is not None:
        say(_describe(drain.seconds_left, now))
    return drain


def _describe(seconds: float, now: datetime) -> str:
    # By way of UTC: a night in which clocks change is an hour longer or shorter.
    when = datetime.fromtimestamp(round(now.timestamp() + seconds)).astimezone()
    day = "" if when.date() == now.date() else f" on {when:%A}"
    return (
        f"stops by {when:%H:%M:%S}{day}, in {format_seconds(seconds)}: what is in flight ends by then, "
        "and the same command goes on"
    )
