"""How long requests take from being sent to their end: what a deadline must leave them. Pure."""

from collections import deque
from collections.abc import Iterable

RECENT_REQUESTS = 512
"""The longest of so many is what those in flight may take: a few batches, so that a night that begins
with long prompts is not judged by them in the morning."""


class Pace:
    """Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._sent: dict[int, float] = {}
        self._recent: deque[float] = deque(maxlen=RECENT_REQUESTS)

    @property
    def longest_seconds(self) -> float:
        """The longest that one of the latest requests took, 0 where none has ended."""
        return max(self._recent, default=0.0)

    def note_sent(self, ordinals: Iterable[int], now: float) -> None:
        """Take note that these requests go to an engine; what was sent before counts from now."""
        self._sent.update(dict.fromkeys(ordinals, now))

    def note_ended(self, ordinals: Iterable[int], now: float) -> None:
        """Take note that these requests have ended."""
        self._recent.extend(now - self._sent.pop(ordinal) for ordinal in ordinals if ordinal in self._sent)
