"""Which sample kills engines? Pure: deaths in, smaller groups and convictions out.

Samples in flight at a death are suspects. They are tried again in ever smaller groups, each alone
in an engine; trying a sample is making it, so the innocent are done with when their group ends.
"""

from collections import Counter, deque
from collections.abc import Sequence

from synthia_batch.core.types import Failed, Message, Request

PARTS = 4
"""Groups that a group is split into. A death costs a restart of the engine, a group that survives
costs nothing: it is made. Four parts find one of 281 samples in 7 deaths, two parts in 11."""
DEATHS_ALONE = 2
"""Deaths with nothing else in the engine that convict a sample."""
_QUESTION = "Are you there?"
LIVENESS_CHECK = Request(
    ordinal=-1,
    token_ids=_QUESTION.encode(),  # Some tokens of any model: nobody reads the answer.
    messages=(Message("user", _QUESTION),),
    seed=0,
    max_tokens=8,
)
"""What an engine that works can answer, whatever it was that ended it before."""


class CrashBisector:
    """The samples under suspicion, and those that are convicted.

    A conviction stands once the worker that tried the sample has made another, or answered PROBE: until
    then the worker itself may be what is broken.
    """

    def __init__(self) -> None:
        self._groups: deque[list[Request]] = deque()
        self._deaths_alone: Counter[int] = Counter()
        self._quarantined: dict[int, list[Request]] = {}
        self._proven: list[Request] = []

    @property
    def are_waiting(self) -> bool:
        """Whether a group waits for its trial."""
        return bool(self._groups)

    @property
    def apart(self) -> int:
        """Samples that no engine holds and that are not to be made among others: suspected or convicted."""
        return sum(map(len, self._groups)) + self.quarantined

    @property
    def quarantined(self) -> int:
        """Samples that are convicted and not yet taken, proven or not."""
        return len(self._proven) + sum(map(len, self._quarantined.values()))

    def take_group(self) -> list[Request]:
        """Return the next group to try, with nothing else in the engine."""
        return self._groups.popleft()

    def take_least(self) -> list[Request]:
        """Return the sample that is least likely to be a culprit, for a trial of its own."""
        *others, request = self._groups.pop()
        if others:
            self._groups.append(others)
        return [request]

    def put_back(self, group: Sequence[Request]) -> None:
        """Have `group` tried again as it is: its trial ended for a reason that was not in it."""
        if group:
            self._groups.appendleft(list(group))

    def add_suspects(self, worker: int, requests: Sequence[Request]) -> bool:
        """Take note that `worker` died with just `requests` unfinished; False where it convicts one."""
        if len(requests) != 1:
            # The smaller groups first: the culprit is likeliest to be in them.
            self._groups.extendleft(reversed(_split(requests)))
            return True
        (request,) = requests
        self._deaths_alone[request.ordinal] += 1
        if self._deaths_alone[request.ordinal] < DEATHS_ALONE:
            self._groups.appendleft([request])
            return True
        self._quarantined.setdefault(worker, []).append(request)
        return False

    def clear(self, ordinal: int) -> None:
        """Forget the deaths with this sample alone: a turn of it was made, and the next is another prompt."""
        self._deaths_alone.pop(ordinal, None)

    def doubts(self, worker: int) -> bool:
        """Whether `worker` has convicted a sample and not made anything since."""
        return worker in self._quarantined

    def prove(self, worker: int) -> None:
        """Take note that `worker` made something: it works, so its convictions stand."""
        self._proven += self._quarantined.pop(worker, [])

    def overturn(self, worker: int) -> None:
        """Take note that `worker` may not come back: what it convicted is tried again elsewhere."""
        for request in self._quarantined.pop(worker, []):
            del self._deaths_alone[request.ordinal]
            self._groups.append([request])

    def take_proven(self) -> list[Request]:
        """Return the samples whose conviction stands, once."""
        proven, self._proven = self._proven, []
        return proven

    def close_trial(self) -> None:
        """Let every conviction stand: no sample is left that could prove a worker."""
        for worker in list(self._quarantined):
            self.prove(worker)


def fail_quarantined(request: Request) -> Failed:
    """Return what becomes of a convicted sample. Always the same text: it is part of the output."""
    message = f"the engine died or hung {DEATHS_ALONE} times with this sample alone in it"
    return Failed(ordinal=request.ordinal, code="engine_crash", message=message)


def _split(requests: Sequence[Request]) -> list[list[Request]]:
    size = max(1, -(-len(requests) // PARTS))
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]
