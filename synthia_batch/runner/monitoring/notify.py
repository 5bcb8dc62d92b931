"""Notifications of a run's end through Apprise: by mail, chat or a web hook.

An address may hold a password, so it is never shown, logged or saved; only its kind is.
"""

import logging
from collections.abc import Mapping, Sequence

from synthia_batch.core.errors import UsageError
from synthia_batch.job.loading.secrets import mask, reveal

_log = logging.getLogger(__name__)

try:
    import apprise
except ImportError as exc:
    raise UsageError("--notify needs apprise: pip install 'synthia-batch[notify]', or drop the flag") from exc

# Its warnings may quote an address.
logging.getLogger("apprise").addHandler(logging.NullHandler())
logging.getLogger("apprise").propagate = False


class Notifier:
    """Sends to each of `urls`, in which ${NAME} stands for a variable of `environment`."""

    def __init__(self, urls: Sequence[str], environment: Mapping[str, str]) -> None:
        """Check every address.

        Raises:
            UsageError: Apprise does not know such an address, or a variable is not set.
        """
        self._targets: list[tuple[str, apprise.Apprise]] = []
        for url in urls:
            name = f"--notify {mask(url)}"
            target = apprise.Apprise()
            if not target.add(reveal(url, environment, "notify")):
                raise UsageError(
                    f"{name}: expected an address that Apprise can send to, such as "
                    "mailto://user:password@host or slack://token; see appriseit.com"
                )
            self._targets.append((name, target))

    def send(self, title: str, body: str) -> None:
        """Send to every address. A failure is logged, and never an error."""
        for name, target in self._targets:
            try:
                is_sent = bool(target.notify(title=title, body=body))
            except Exception:  # A plugin must not end the run, and its message may hold secrets.
                is_sent = False
            if not is_sent:
                _log.info(f"{name}: could not be sent; the run is not affected")
