"""Groups requests that begin alike, so that one engine's prefix cache serves them. Pure."""

from collections.abc import Sequence

from synthia_batch.core.types import Request

GROUP_SAMPLES = 16
"""Requests that go to one engine together. Each more would save under a sixteenth of a prefix."""
MIN_SHARED_TOKENS = 16
"""vLLM caches whole blocks: 16 tokens on GPUs, 128 on CPUs."""


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
