"""Which worker makes which sample next. Pure: no processes, no clock, no files.

Samples come from the plan in order, a window at a time, and within it the longest prompts, with what
their rows let an answer have, go first. A window is dealt in turns, like cards, to as many hands as
there are workers: the engine that is ready first takes a whole batch at once, and if that were the
longest half of a job, the others would be done in half of its time. Where engines have a prefix
cache, what is dealt is groups of prompts that begin alike (see `prefixes`), the group with the
longest prompt first, so that one engine gets all of a group. In strict determinism there is no
cache, and only the length counts. As long as no engine has made a sample of the job, a hand begins with
its shortest: soon somebody can read an answer, and the engine is known to work.

At the tail no engine gets more than its share of what is left, and takes over the rest of another's
hand. That leaves what is inside a slower worker, waiting: a tenth of a batch as a rule, but most of
it where the KV cache has room for few samples at their longest. So an engine that has nothing
recalls what others have not begun, and it is dealt out again: of what nobody holds, each engine leaves
one for every other that has nothing.

What a lost worker had comes first again, or, where it may be what killed the worker, is tried apart
from the rest: see `suspects`.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from synthia_batch.core.types import Finished, Outcome, Request
from synthia_batch.scheduler.crash_bisection import LIVENESS_CHECK, CrashBisector
from synthia_batch.scheduler.prefix_groups import count_tokens, group_by_prefix, group_singly

WINDOW_SAMPLES = 512
"""Read ahead and sorted together; a sample is never held back longer than that. Bounds memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRemoval:
    """What a closed desk leaves. `narrowed` says that the death was part of a search for the
    sample that causes it, and has brought that search on.
    """

    unfinished: int
    narrowed: bool


@dataclass(slots=True)
class _Slot:
    """What one worker is busy with. `capacity` is the number of requests that it can hold, `queue`
    the next turns of its conversations and what it was dealt and does not hold yet. `on_trial` says that
    nothing may join what it holds, `is_proving` that this is to show that the worker is not broken.
    `is_recalled` says that it was asked for what it has not begun since it was last given something.
    """

    capacity: int
    held: dict[int, Request] = field(default_factory=dict)
    queue: deque[Request] = field(default_factory=deque)
    on_trial: bool = False
    is_proving: bool = False
    is_recalled: bool = False


class Dispatcher:
    """Hands out the samples of a job, each to one worker at a time until it ends.

    `requests` is read a window ahead of what workers can take. `total` is the number of requests
    that it will give. `groups_prefixes` says that the engines have a prefix cache, `has_made` that
    engines like them have made samples of this job before.
    """

    def __init__(
        self,
        requests: Iterator[Request],
        total: int,
        *,
        groups_prefixes: bool = False,
        has_made: bool = False,
    ) -> None:
        self._requests = requests
        self._total = total
        self._group = group_by_prefix if groups_prefixes else group_singly
        self._window: list[list[Request]] = []
        self._queues: deque[deque[Request]] = deque()
        self._returned: deque[Request] = deque()
        self._slots: dict[int, _Slot] = {}
        self._bisector = CrashBisector()
        self._quarantine: set[int] = set()
        self._ended = 0
        self._has_made = has_made

    @property
    def is_done(self) -> bool:
        """Whether every sample has ended."""
        return self._ended == self._total

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
        """Count `worker` in: it can hold `capacity` requests."""
        self._slots[worker] = _Slot(capacity=capacity)

    def remove_worker(self, worker: int, *, suspects_samples: bool) -> WorkerRemoval:
        """Count `worker` out; what it held is given out again.

        With `suspects_samples` one of them may have ended the worker: they are tried apart from the
        others, by this worker once it is back, or by any that has nothing else to do.
        """
        slot = self._slots.pop(worker, None)
        if slot is not None and slot.queue:
            self._queues.appendleft(slot.queue)
        held = [request for request in slot.held.values() if request is not LIVENESS_CHECK] if slot else []
        if slot is None or not held:
            return WorkerRemoval(unfinished=0, narrowed=False)
        if suspects_samples:
            self._quarantine.add(worker)
            spread = self._bisector.add_suspects(worker, held)
            return WorkerRemoval(
                unfinished=len(held), narrowed=spread and slot.on_trial and not slot.is_proving
            )
        if slot.on_trial:
            self._quarantine.add(worker)
            self._bisector.put_back(held)
        else:
            self._returned.extend(held)
        return WorkerRemoval(unfinished=len(held), narrowed=False)

    def give_up(self, worker: int) -> None:
        """Wait for `worker` no more, and believe nothing that its deaths seemed to say."""
        self._bisector.overturn(worker)

    def top_up(self, worker: int, workers: int) -> list[Request]:
        """Return the requests to send to `worker` now, of `workers` that share the job.

        A worker is filled to its capacity, but never beyond its share of what is left: at the end
        no engine sits idle while another has a queue.
        """
        slot = self._slots[worker]
        if self._bisector.doubts(worker) and not slot.held and (batch := self._draw_proof(slot, workers)):
            slot.on_trial = slot.is_proving = True
        elif self._is_apart(worker, slot):
            batch = self._draw_suspects(slot)
        else:
            batch = self._draw(slot, self._count_room(slot, workers), workers)
            slot.on_trial = False if batch else slot.on_trial
            if not batch and not slot.held:
                batch = self._draw_suspects(slot)
        slot.held.update((request.ordinal, request) for request in batch)
        if batch:
            slot.is_recalled = False
        return batch

    def choose_recalls(self) -> list[int]:
        """Return the workers to ask for what they have not begun: another was topped up and has nothing.

        Each is asked once until it is given more.
        """
        if not self._list_idle():
            return []
        chosen = [
            worker
            for worker, slot in self._slots.items()
            if len(slot.held) > 1 and not slot.on_trial and not slot.is_recalled
        ]
        for worker in chosen:
            self._slots[worker].is_recalled = True
        return chosen

    def take_back(self, worker: int, ordinals: Sequence[int]) -> None:
        """Take note that `worker` will not make these samples of those that it held."""
        slot = self._slots.get(worker)
        if slot is not None:
            returned = (slot.held.pop(ordinal, None) for ordinal in ordinals)
            self._returned.extend(request for request in returned if request is not None)

    def accept(self, worker: int, outcome: Outcome) -> bool:
        """Take note that `worker` ended a request; False if that was not its own.

        With it a sample has ended, unless its ordinal is below 0: that shows only that the worker works.
        """
        slot = self._slots.get(worker)
        held = slot.held.get(outcome.ordinal) if slot else None
        if slot is None or held is None:
            return False
        if isinstance(outcome, Finished) and outcome.turn != held.turn:
            return False
        del slot.held[outcome.ordinal]
        if held is LIVENESS_CHECK:
            self._bisector.prove(worker)
            return True
        self._ended += 1
        if isinstance(outcome, Finished):
            self._has_made = True
            self._bisector.prove(worker)
        return True

    def go_on(self, worker: int, request: Request) -> None:
        """Take note that what `worker` just ended was a turn of a conversation, and `request` is the next.

        That is the first thing that `worker` draws, unless another runs out of work before.
        """
        self._ended -= 1
        self._bisector.clear(request.ordinal)
        self._slots[worker].queue.appendleft(request)

    def take_quarantined(self) -> list[Request]:
        """Return the samples that were found to end engines; with that they have ended."""
        is_all = self._ended + self._bisector.quarantined == self._total
        if self._bisector.quarantined and is_all and not self._has_made:
            self._bisector.close_trial()
        quarantined = self._bisector.take_proven()
        self._ended += len(quarantined)
        return quarantined

    def end_unsent(self) -> None:
        """Take note that a sample ended before it was sent: its prompt could not be rendered."""
        self._ended += 1

    def _is_apart(self, worker: int, slot: _Slot) -> bool:
        """Whether `worker` is to try suspects only. With none left it comes back to the others."""
        if slot.on_trial and slot.held:
            return True
        if worker in self._quarantine and not self._bisector.are_waiting:
            self._quarantine.discard(worker)
        return worker in self._quarantine

    def _draw_suspects(self, slot: _Slot) -> list[Request]:
        if slot.held or not self._bisector.are_waiting:
            return []
        slot.on_trial, slot.is_proving = True, False
        return self._bisector.take_group()

    def _draw_proof(self, slot: _Slot, workers: int) -> list[Request]:
        """Return what shows, alone in the engine, that a worker which has convicted a sample is not broken.

        Of the samples the shortest: those that end engines are often the longest. With none left a
        question will do, unless no engine has made any sample yet: then all of the job may end engines,
        and only a sample that was made shows anything.
        """
        if self._returned:
            return [self._returned.pop()]
        if queue := self._find_queue(slot, workers):
            return [queue.pop()]
        if self._has_made:
            return [LIVENESS_CHECK]
        return self._bisector.take_least() if self._bisector.are_waiting else []

    def _count_room(self, slot: _Slot, workers: int) -> int:
        left = self._total - self._ended
        share = -(-left // workers)
        # What is drawn now is inside the engine a moment later, and an idle one would have to recall it.
        others_idle = len(self._list_idle()) - (not slot.held)
        spare = left - self.in_flight - self._bisector.apart - others_idle
        most = min(slot.capacity, share) - len(slot.held)
        return max(0, min(most, spare if slot.held else max(1, spare)))

    def _list_idle(self) -> list[int]:
        """Return the workers that have nothing and may have anything."""
        return [
            worker for worker, slot in self._slots.items() if not slot.held and worker not in self._quarantine
        ]

    def _draw(self, slot: _Slot, count: int, workers: int) -> list[Request]:
        """Return up to `count` requests, those that came back first."""
        batch = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        while len(batch) < count and (queue := self._find_queue(slot, workers)):
            batch.append(queue.popleft())
        return batch

    def _find_queue(self, slot: _Slot, workers: int) -> deque[Request]:
        """Return what `slot` draws from: its own hand, the next, or another's; empty at the end."""
        if not slot.queue and self._partition(workers):
            slot.queue = self._queues.popleft()
        return slot.queue or max((other.queue for other in self._slots.values()), key=len)

    def _partition(self, workers: int) -> bool:
        """Deal the next window to `workers` hands where those of the last are taken; False at the end."""
        if not self._queues and self._fill_window():
            partitioned = (self._window[start::workers] for start in range(workers))
            self._queues.extend(
                deque(itertools.chain.from_iterable(groups)) for groups in partitioned if groups
            )
            self._window = []
            if not self._has_made:
                for queue in self._queues:
                    _put_shortest_first(queue)
        return bool(self._queues)

    def _fill_window(self) -> bool:
        """Read the next window where the last is dealt; False at the end."""
        if not self._window:
            self._window = self._group(list(itertools.islice(self._requests, WINDOW_SAMPLES)))
        return bool(self._window)


def _put_shortest_first(queue: deque[Request]) -> None:
    """Have `queue`, whose longest requests are first, begin with its last where that is shorter."""
    if count_tokens(queue[-1]) < count_tokens(queue[0]):
        queue.rotate(1)
