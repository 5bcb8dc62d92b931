"""Which sample crashes engines? Pure: from deaths to ever smaller groups and quarantined samples.

Samples in flight at a death are suspects. They are generated in ever smaller groups, each group alone
in an engine, so harmless samples are finished as soon as their group ends.
"""

from collections import Counter, deque
from collections.abc import Sequence

from synthia_batch.core.types import Failed, Message, Request

PARTS = 4
"""Groups that a group is split into. A death costs a restart of the engine, a group that survives
costs nothing: it is finished. Four parts find one of 281 samples in 7 deaths, two parts in 11."""
DEATHS_ALONE = 2
"""Deaths with nothing else in the engine after which a sample is quarantined."""
_QUESTION = "Are you there?"
LIVENESS_CHECK = Request(
    ordinal=-1,
    token_ids=_QUESTION.encode(),  # Valid tokens of any model: the answer is not read.
    messages=(Message("user", _QUESTION),),
    seed=0,
    max_tokens=8,
)
"""A request that every working engine can answer, whatever crashed it before."""


class CrashBisector:
    """The suspected and the quarantined samples.

    A quarantine is confirmed once the worker that crashed has generated another sample or answered
    LIVENESS_CHECK: until then the worker itself may be broken.
    """

    def __init__(self) -> None:
        self._groups: deque[list[Request]] = deque()
        self._deaths_alone: Counter[int] = Counter()
        self._quarantined: dict[int, list[Request]] = {}
        self._confirmed: list[Request] = []

    @property
    def has_groups(self) -> bool:
        """Whether a group waits for an engine."""
        return bool(self._groups)

    @property
    def isolated(self) -> int:
        """Suspected or quarantined samples that no engine holds: none may run among others."""
        return sum(map(len, self._groups)) + self.quarantined

    @property
    def quarantined(self) -> int:
        """Quarantined samples that were not taken yet, confirmed or not."""
        return len(self._confirmed) + sum(map(len, self._quarantined.values()))

    def take_group(self) -> list[Request]:
        """Return the next group to run, with nothing else in the engine."""
        return self._groups.popleft()

    def take_last(self) -> list[Request]:
        """Return the sample that is least likely to crash an engine, to run alone."""
        *others, request = self._groups.pop()
        if others:
            self._groups.append(others)
        return [request]

    def put_back(self, group: Sequence[Request]) -> None:
        """Queue `group` again as it is: its run ended for another reason."""
        if group:
            self._groups.appendleft(list(group))

    def add_suspects(self, worker: int, requests: Sequence[Request]) -> bool:
        """Suspect `requests`, with which `worker` died; False if one is quarantined by that."""
        if len(requests) != 1:
            # The new groups first: the fatal sample is likeliest to be in them.
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
        """Forget the deaths with this sample alone: a turn of it is finished, the next has another prompt."""
        self._deaths_alone.pop(ordinal, None)

    def needs_proof(self, worker: int) -> bool:
        """Whether `worker` has quarantined a sample and finished nothing since."""
        return worker in self._quarantined

    def confirm(self, worker: int) -> None:
        """Confirm the quarantines of `worker`: it finished a request, so it works."""
        self._confirmed += self._quarantined.pop(worker, [])

    def retract(self, worker: int) -> None:
        """Suspect the quarantined samples of `worker` again: it may not come back to confirm them."""
        for request in self._quarantined.pop(worker, []):
            del self._deaths_alone[request.ordinal]
            self._groups.append([request])

    def take_confirmed(self) -> list[Request]:
        """Return the samples whose quarantine is confirmed, once."""
        confirmed, self._confirmed = self._confirmed, []
        return confirmed

    def confirm_all(self) -> None:
        """Confirm every quarantine: no sample is left that could show that a worker works."""
        for worker in list(self._quarantined):
            self.confirm(worker)


def fail_quarantined(request: Request) -> Failed:
    """Return the failure of a quarantined sample. Its text is part of the output and never changes."""
    message = f"the engine died or hung {DEATHS_ALONE} times with this sample alone in it"
    return Failed(ordinal=request.ordinal, code="engine_crash", message=message)


def _split(requests: Sequence[Request]) -> list[list[Request]]:
    size = max(1, -(-len(requests) // PARTS))
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]
