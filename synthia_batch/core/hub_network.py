"""Whether the Hugging Face Hub can be reached, in seconds: its own library retries for half a minute."""

import socket
import urllib.request
from urllib.parse import urlsplit

PROBE_SECONDS = 3.0


def find_network_fault() -> OSError | None:
    """Return why no connection to the Hub can be made, None if one can, or if a proxy makes it."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or parts.hostname is None or parts.scheme in urllib.request.getproxies():
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=PROBE_SECONDS).close()
    except OSError as exc:
        return exc
    return None
