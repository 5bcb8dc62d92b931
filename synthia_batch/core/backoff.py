"""Exponential back-off between the tries of a request, and the pauses that servers ask for."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPolicy:
    """Pauses of `first_seconds`, doubled with each failure in a row up to `longest_seconds`.

    A longer pause that the server asks for is respected up to `longest_asked_seconds`. Of each pause,
    a random share from `least_share` to 1 is used, so that many clients do not return at the same moment.
    Retries end after `max_retries` failures in a row, or where the next pause would end later than
    `max_seconds` after the first try.
    """

    first_seconds: float
    longest_seconds: float
    longest_asked_seconds: float = math.inf
    least_share: float = 1.0
    max_retries: int | None = None
    max_seconds: float | None = None


class Backoff:
    """The retries of one request. The time limit counts from the creation of this object."""

    def __init__(
        self,
        policy: BackoffPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.failures = 0
        self._policy = policy
        self._clock = clock
        self._sleep = sleep
        self._end = math.inf if policy.max_seconds is None else clock() + policy.max_seconds

    def reset(self) -> None:
        """Start again from the shortest pause: the request made progress."""
        self.failures = 0

    def next_pause(self, asked_seconds: float = 0.0) -> float | None:
        """Count a failure and return the seconds until the next try, None once a limit is reached."""
        policy = self._policy
        # The exponent is capped: 2.0 ** 1024 is an OverflowError, and a server can be away for days.
        pause = min(policy.first_seconds * 2.0 ** min(self.failures, 64), policy.longest_seconds)
        self.failures += 1
        if policy.least_share < 1.0:
            pause *= random.uniform(policy.least_share, 1.0)
        pause = max(pause, min(asked_seconds, policy.longest_asked_seconds))
        is_spent = policy.max_retries is not None and self.failures > policy.max_retries
        return None if is_spent or self._clock() + pause > self._end else pause

    def wait(self, asked_seconds: float = 0.0) -> bool:
        """Count a failure and sleep until the next try. Returns False at once if a limit is reached."""
        pause = self.next_pause(asked_seconds)
        if pause is None:
            return False
        self._sleep(pause)
        return True


def parse_retry_after(value: str, *, clock: Callable[[], float] = time.time) -> float:
    """Return the seconds that a Retry-After header asks for, in either form: a number or an HTTP date.

    0 for a date in the past and for anything that is neither (RFC 9110, section 10.2.3).
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - clock()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
