"""How long a server that is busy or away is waited for, and when each request comes back to it."""

import asyncio
import time

from synthia_batch.core.backoff import Backoff, BackoffPolicy
from synthia_batch.core.errors import PoolFailed
from synthia_batch.job.engine_settings import EndpointSettings
from synthia_batch.workers.openai.errors import RequestFailed, ServerAway

BACKOFF = BackoffPolicy(first_seconds=0.5, longest_seconds=20.0, least_share=0.5)
"""Between two tries of one request. The limit is `Patience`, which all requests of an engine share."""


class Patience:
    """How long the server of one engine has been away, and when it may be asked again."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._away_since: float | None = None
        self._open_at = 0.0

    def note_answer(self) -> None:
        """Take note that the server answers."""
        self._away_since = None

    async def wait_for_turn(self) -> None:
        """Return once the server may be asked: all keep away while it has asked for that."""
        while (left := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def wait_out(self, trouble: ServerAway | RequestFailed, backoff: Backoff) -> None:
        """Return after a pause, or after the longer one that the server asks for.

        Raises:
            PoolFailed: There has been no answer for as long as a server may be away, or there would be none.
        """
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
        away_seconds = now - self._away_since
        asked_seconds = trouble.wait_seconds if isinstance(trouble, ServerAway) else 0.0
        if away_seconds + asked_seconds > self._settings.patience_seconds:
            more = f", and asks for {asked_seconds:.0f} s more" if asked_seconds else ""
            raise PoolFailed(
                f"{self._settings.base_url} has answered nothing for {away_seconds:.0f} s{more} ({trouble}); "
                "what was finished is kept: run the same command once it is back (engine.patience_seconds is "
                "how long a server may be away)"
            )
        self._open_at = max(self._open_at, now + asked_seconds)
        await asyncio.sleep(backoff.next_pause(asked_seconds) or 0.0)
