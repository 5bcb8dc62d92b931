"""Which worker makes which sample next. Pure: no processes, no clock, no files.

Samples come from the plan in order and wait in a window; workers are topped up from it. What a
lost worker had goes back to the front.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from synthia_batch.rows import Request


@dataclass(slots=True)
class _Desk:
    """What one worker is busy with. `capacity` is 0 until it is ready."""

    capacity: int = 0
    held: dict[int, Request] = field(default_factory=dict)


class Dispatcher:
    """Hands out the samples of a job.

    `requests` is read only as far as workers can take, so memory is bounded by what is in flight.
    `total` is the number of requests that it will give.
    """

    def __init__(self, requests: Iterator[Request], total: int) -> None:
        self._requests = requests
        self._total = total
        self._returned: deque[Request] = deque()
        self._desks: dict[int, _Desk] = {}
        self._ended = 0

    @property
    def is_done(self) -> bool:
        """Whether every sample has ended."""
        return self._ended == self._total

    @property
    def in_flight(self) -> int:
        """Samples that some worker holds."""
        return sum(len(desk.held) for desk in self._desks.values())

    def open_desk(self, worker: int, capacity: int) -> None:
        """Count `worker` in: it can hold `capacity` requests."""
        self._desks[worker] = _Desk(capacity=capacity)

    def close_desk(self, worker: int) -> int:
        """Count `worker` out and put back what it held; return how many samples that were."""
        desk = self._desks.pop(worker, _Desk())
        self._returned.extend(desk.held.values())
        return len(desk.held)

    def top_up(self, worker: int, workers: int) -> list[Request]:
        """Return the requests to send to `worker` now, of `workers` that share the job.

        A worker is filled to its capacity, but never beyond its share of what is left: at the end
        no engine sits idle while another has a queue.
        """
        desk = self._desks[worker]
        share = -(-(self._total - self._ended) // workers)
        wanted = min(desk.capacity, share) - len(desk.held)
        if wanted <= 0:
            return []
        batch = self._draw(wanted)
        desk.held.update((request.ordinal, request) for request in batch)
        return batch

    def accept(self, worker: int, ordinal: int) -> bool:
        """Take note that `worker` ended a sample; False where it was not its to end."""
        desk = self._desks.get(worker)
        if desk is None or desk.held.pop(ordinal, None) is None:
            return False
        self._ended += 1
        return True

    def end_unsent(self) -> None:
        """Take note that a sample ended before it was sent: its prompt could not be rendered."""
        self._ended += 1

    def _draw(self, count: int) -> list[Request]:
        """Return up to `count` requests, those that came back first."""
        batch = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        batch += itertools.islice(self._requests, count - len(batch))
        return batch
