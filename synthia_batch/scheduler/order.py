"""The order in which the requests of a window are dispatched. Pure; `Dispatcher` applies it.

Another order is a function like `group_singly`, an entry beside LONGEST_FIRST, and a line in `choose_order`.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from synthia_batch.core.types import Request
from synthia_batch.job.resolved import ResolvedJob

GROUP_SAMPLES = 16
"""Requests that go to one engine together. Each more would save under a sixteenth of a prefix."""
MIN_SHARED_TOKENS = 16
"""vLLM caches whole blocks: 16 tokens on GPUs, 128 on CPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchOrder:
    """How a window of requests is partitioned into one queue per worker.

    In turn: the engine that is ready first takes a whole batch at once, and with the longest half of a
    job the others would finish in half its time.

    `group` returns the window in groups, the first to dispatch first; a group stays in one queue. With
    `keeps_groups`, an engine without a queue is given whole groups of another's, since it would have to
    compute their prefix too; otherwise both draw from one queue. With `starts_short`, a queue begins with
    its last request, if that is shorter than its first, until an engine has generated a sample of the job:
    an answer to read comes soon, and the engine is known to work.
    """

    group: Callable[[Sequence[Request]], list[list[Request]]]
    starts_short: bool = False
    keeps_groups: bool = False

    def share(self, queue: deque[Request]) -> deque[Request]:
        """Return what an engine without a queue draws from: `queue`, or the half of it that it is given."""
        if not self.keeps_groups:
            return queue
        requests, half = list(queue), len(queue) // 2
        begins = (n for n in range(half, len(queue)) if not _begin_alike(requests[n - 1], requests[n]))
        given = deque(requests[next(begins, half) :])
        for _ in given:
            queue.pop()
        return given

    def partition(
        self, window: Sequence[Request], workers: int, *, has_generated: bool
    ) -> list[deque[Request]]:
        """Return up to `workers` queues that `window` is partitioned into, group by group in turn."""
        groups = self.group(window)
        partitioned = (groups[start::workers] for start in range(workers))
        queues = [deque(chain(*part)) for part in partitioned if part]
        if self.starts_short and not has_generated:
            for queue in queues:
                if count_tokens(queue[-1]) < count_tokens(queue[0]):
                    queue.rotate(1)
        return queues


def choose_order(job: ResolvedJob) -> DispatchOrder:
    """Return the order for `job`: the longest first, and whole groups if its engines cache prefixes."""
    return LONGEST_FIRST_BY_PREFIX if job.engine.caches_prefixes else LONGEST_FIRST


def group_by_prefix(requests: Sequence[Request]) -> list[list[Request]]:
    """Return `requests` in groups of at most GROUP_SAMPLES, the group with the longest prompt first.

    Neighbours in a group share at least half of a prompt: a common system message or document,
    earlier turns of a conversation, or the whole prompt. Within a group the longest go first too, and
    equal prompts keep their order and stay neighbours.
    """
    groups: list[list[Request]] = []
    last: Request | None = None
    # Sorted by tokens, those that share most are neighbours.
    for request in sorted(requests, key=lambda request: request.token_ids):  # type: ignore[arg-type,return-value]
        if last is not None and _begin_alike(last, request):
            groups[-1].append(request)
        else:
            groups.append([request])
        last = request
    return _put_longest_first([part for group in groups for part in _split(group)])


def group_singly(requests: Sequence[Request]) -> list[list[Request]]:
    """Return each request as a group of its own, the longest first: for engines without a cache.

    Equal prompts keep their order.
    """
    return _put_longest_first([[request] for request in requests])


def count_tokens(request: Request) -> int:
    """Return the tokens of the prompt plus, if the row has its own limit, of the longest answer."""
    return len(request.token_ids) + (request.max_tokens or 0)


def _begin_alike(one: Request, other: Request) -> bool:
    shortest = min(len(one.token_ids), len(other.token_ids))
    shared = max(MIN_SHARED_TOKENS, -(-shortest // 2))
    return shared <= shortest and one.token_ids[:shared] == other.token_ids[:shared]


def _split(group: list[Request]) -> list[list[Request]]:
    group.sort(key=count_tokens, reverse=True)
    return [group[start : start + GROUP_SAMPLES] for start in range(0, len(group), GROUP_SAMPLES)]


def _put_longest_first(groups: list[list[Request]]) -> list[list[Request]]:
    return sorted(groups, key=lambda group: count_tokens(group[0]), reverse=True)


LONGEST_FIRST = DispatchOrder(group=group_singly, starts_short=True)
LONGEST_FIRST_BY_PREFIX = DispatchOrder(group=group_by_prefix, starts_short=True, keeps_groups=True)
