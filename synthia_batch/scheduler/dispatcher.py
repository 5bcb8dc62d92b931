"""Which worker generates which sample next. Pure: no processes, no clock, no files.

Samples come from the plan in order, one window at a time. `order` partitions a window into one queue per
worker.

At the tail no engine gets more than its share of what is left, and an engine without a queue takes
from the longest other one. Then requests wait only inside slower workers: usually a tenth of a
batch, but most of it if the KV cache has room for few samples at full length.

Work stealing. An idle engine takes back queued requests from busy ones. To prevent requests bouncing
back and forth, every engine leaves one unassigned request for each idle engine.

The requests of a lost worker go first again. If one of them may have crashed it, they are isolated
from the others: see `crash_bisection`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from synthia_batch.core.types import Finished, Outcome, Request
from synthia_batch.scheduler.crash_bisection import LIVENESS_CHECK, CrashBisector
from synthia_batch.scheduler.order import LONGEST_FIRST, DispatchOrder

WINDOW_SAMPLES = 512
"""Samples that are read ahead and sorted together. Bounds memory and how long a sample waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRemoval:
    """Result of removing a worker. `narrowed`: its crash narrowed down which sample causes crashes."""

    unfinished: int
    narrowed: bool


@dataclass(slots=True)
class _Slot:
    """The requests of one worker. It can hold `capacity`; `queue` has those that it does not hold yet:
    next turns of its conversations, then its part of the window. `is_exclusive`: nothing may be added
    to what it holds, because it holds suspects or, if `is_check`, a request that shows
    whether the worker works. `is_recalled`: it was recalled since it was last sent something.
    """

    capacity: int
    held: dict[int, Request] = field(default_factory=dict)
    queue: deque[Request] = field(default_factory=deque)
    is_exclusive: bool = False
    is_check: bool = False
    is_recalled: bool = False


class Dispatcher:
    """Assigns the samples of a job, each to one worker at a time until it ends.

    `requests` yields `total` requests and is read one window ahead. `has_generated`: such engines have
    generated samples of this job before.
    """

    def __init__(
        self,
        requests: Iterator[Request],
        total: int,
        *,
        order: DispatchOrder = LONGEST_FIRST,
        has_generated: bool = False,
    ) -> None:
        self._requests = requests
        self.total = total
        self._order = order
        self._window: list[Request] = []
        self._queues: deque[deque[Request]] = deque()
        self._returned: deque[Request] = deque()
        self._slots: dict[int, _Slot] = {}
        self._bisector = CrashBisector()
        self._isolated: set[int] = set()
        self._ended = 0
        self._has_generated = has_generated

    @property
    def is_done(self) -> bool:
        return self._ended == self.total

    @property
    def in_flight(self) -> int:
        """Samples that some worker holds."""
        return sum(len(slot.held) for slot in self._slots.values())

    @property
    def held(self) -> dict[int, int]:
        """How many samples each worker holds."""
        return {worker: len(slot.held) for worker, slot in self._slots.items()}

    @property
    def busy(self) -> set[int]:
        """The workers that hold samples."""
        return {worker for worker, slot in self._slots.items() if slot.held}

    def read_ahead(self) -> None:
        """Read the first window now, so that the first worker does not wait for it."""
        self._fill_window()

    def add_worker(self, worker: int, capacity: int) -> None:
        """Add a slot for `worker`, which can hold `capacity` requests."""
        self._slots[worker] = _Slot(capacity=capacity)

    def remove_worker(self, worker: int, *, suspects_samples: bool) -> WorkerRemoval:
        """Remove the slot of `worker`; what it held is assigned again.

        With `suspects_samples`, one of these samples may have crashed the worker: they are isolated
        from the others, in this worker once it is back, or in any that has nothing else to do.
        """
        slot = self._slots.pop(worker, None)
        if slot is not None and slot.queue:
            self._queues.appendleft(slot.queue)
        held = [request for request in slot.held.values() if request is not LIVENESS_CHECK] if slot else []
        if slot is None or not held:
            return WorkerRemoval(unfinished=0, narrowed=False)
        if suspects_samples:
            self._isolated.add(worker)
            narrows = self._bisector.add_suspects(worker, held)
            narrows = narrows and slot.is_exclusive and not slot.is_check
            return WorkerRemoval(unfinished=len(held), narrowed=narrows)
        if slot.is_exclusive:
            self._isolated.add(worker)
            self._bisector.put_back(held)
        else:
            self._returned.extend(held)
        return WorkerRemoval(unfinished=len(held), narrowed=False)

    def give_up(self, worker: int) -> None:
        """Stop waiting for `worker`, and retract what was concluded from its deaths."""
        self._bisector.retract(worker)

    def top_up(self, worker: int, workers: int) -> list[Request]:
        """Return the requests to send to `worker` now, one of `workers` that share the job.

        A worker is filled to its capacity, but never beyond its share of what is left: at the end
        no engine is idle while another has a queue.
        """
        slot = self._slots[worker]
        needs_proof = self._bisector.needs_proof(worker) and not slot.held
        if needs_proof and (batch := self._draw_check(slot, workers)):
            slot.is_exclusive = slot.is_check = True
        elif self._takes_suspects(worker, slot):
            batch = self._draw_suspects(slot)
        else:
            batch = self._draw(slot, self._count_room(slot, workers), workers)
            slot.is_exclusive = False if batch else slot.is_exclusive
            if not batch and not slot.held:
                batch = self._draw_suspects(slot)
        slot.held.update((request.ordinal, request) for request in batch)
        if batch:
            slot.is_recalled = False
        return batch

    def choose_recalls(self) -> list[int]:
        """Return the workers to recall unstarted requests from: another is idle after its top-up.

        Each is recalled once until it is sent more.
        """
        if not self._list_idle():
            return []
        chosen = []
        for worker, slot in self._slots.items():
            if len(slot.held) > 1 and not slot.is_exclusive and not slot.is_recalled:
                slot.is_recalled = True
                chosen.append(worker)
        return chosen

    def take_back(self, worker: int, ordinals: Sequence[int]) -> None:
        """Take back these samples, which `worker` held and has not started."""
        slot = self._slots.get(worker)
        if slot is not None:
            returned = (slot.held.pop(ordinal, None) for ordinal in ordinals)
            self._returned.extend(request for request in returned if request is not None)

    def accept(self, worker: int, outcome: Outcome) -> bool:
        """Count a request that `worker` ended; False if `worker` did not hold it.

        A sample has ended with it, unless its ordinal is below 0: that only shows that the worker works.
        """
        slot = self._slots.get(worker)
        held = slot.held.get(outcome.ordinal) if slot else None
        if slot is None or held is None:
            return False
        if isinstance(outcome, Finished) and outcome.turn != held.turn:
            return False
        del slot.held[outcome.ordinal]
        if held is LIVENESS_CHECK:
            self._bisector.confirm(worker)
            return True
        self._ended += 1
        if isinstance(outcome, Finished):
            self._has_generated = True
            self._bisector.confirm(worker)
        return True

    def continue_with(self, worker: int, request: Request) -> None:
        """Queue `request`, the next turn of a conversation of which `worker` just ended one.

        `worker` draws it first, unless another runs out of work before.
        """
        self._ended -= 1
        self._bisector.clear(request.ordinal)
        self._slots[worker].queue.appendleft(request)

    def take_quarantined(self) -> list[Request]:
        """Return the samples that were found to crash engines; they count as ended."""
        is_all = self._ended + self._bisector.quarantined == self.total
        if self._bisector.quarantined and is_all and not self._has_generated:
            self._bisector.confirm_all()
        quarantined = self._bisector.take_confirmed()
        self._ended += len(quarantined)
        return quarantined

    def end_unsent(self) -> None:
        """Count a sample that ended before it was sent: its prompt could not be rendered."""
        self._ended += 1

    def _takes_suspects(self, worker: int, slot: _Slot) -> bool:
        """Whether `worker` takes suspects only; with none left it takes others again."""
        if slot.is_exclusive and slot.held:
            return True
        if worker in self._isolated and not self._bisector.has_groups:
            self._isolated.discard(worker)
        return worker in self._isolated

    def _draw_suspects(self, slot: _Slot) -> list[Request]:
        if slot.held or not self._bisector.has_groups:
            return []
        slot.is_exclusive, slot.is_check = True, False
        return self._bisector.take_group()

    def _draw_check(self, slot: _Slot, workers: int) -> list[Request]:
        """Return a request that, alone in an engine that quarantined a sample, shows that it works.

        The shortest sample, since those that crash engines are often the longest. With none left, a
        simple question is enough, unless no engine has generated a sample yet: then every sample of the
        job may crash engines, and only a generated one shows anything.
        """
        if self._returned:
            return [self._returned.pop()]
        if queue := self._find_queue(slot, workers):
            return [queue.pop()]
        if self._has_generated:
            return [LIVENESS_CHECK]
        return self._bisector.take_last() if self._bisector.has_groups else []

    def _count_room(self, slot: _Slot, workers: int) -> int:
        left = self.total - self._ended
        share = -(-left // workers)
        # What is drawn now is inside the engine at once, and an idle one would have to recall it.
        others_idle = len(self._list_idle()) - (not slot.held)
        spare = left - self.in_flight - self._bisector.isolated - others_idle
        most = min(slot.capacity, share) - len(slot.held)
        return max(0, min(most, spare if slot.held else max(1, spare)))

    def _list_idle(self) -> list[int]:
        """Return the workers that hold nothing and may take any sample."""
        return [w for w, slot in self._slots.items() if not slot.held and w not in self._isolated]

    def _draw(self, slot: _Slot, count: int, workers: int) -> list[Request]:
        """Return up to `count` requests, returned ones first."""
        batch = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        while len(batch) < count and (queue := self._find_queue(slot, workers)):
            batch.append(queue.popleft())
        return batch

    def _find_queue(self, slot: _Slot, workers: int) -> deque[Request]:
        """Return the queue that `slot` draws from: its own, a new one, or another's; empty at the end."""
        if not slot.queue and self._partition(workers):
            slot.queue = self._queues.popleft()
        if not slot.queue:
            longest = max((other.queue for other in self._slots.values()), key=len)
            shared = self._order.share(longest)
            if shared is longest:
                return longest
            slot.queue = shared
        return slot.queue

    def _partition(self, workers: int) -> bool:
        """Partition the next window into `workers` queues once the last is taken; False at the end."""
        if not self._queues and self._fill_window():
            self._queues.extend(
                self._order.partition(self._window, workers, has_generated=self._has_generated)
            )
            self._window = []
        return bool(self._queues)

    def _fill_window(self) -> bool:
        """Read the next window once the last is partitioned; False at the end."""
        if not self._window:
            self._window = list(islice(self._requests, WINDOW_SAMPLES))
        return bool(self._window)
