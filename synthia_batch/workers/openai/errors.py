"""Classifies the errors of the openai client by the action they need, never by a message's text."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import openai

from synthia_batch.core.backoff import parse_retry_after
from synthia_batch.core.errors import SampleRefused, UsageError
from synthia_batch.workers.openai.protocol import CONTENT_FILTER, BrokenAnswer

REFUSED = frozenset({400, 413, 422})
"""The request is at fault."""
SHUT_OUT = frozenset({401, 403, 404, 405})
"""The key, the model or the address is at fault: every request would fail."""
AWAY = frozenset({429, 502, 503, 504, 529})
"""The server is busy, or a gateway cannot reach it."""
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
"""OpenAI's code and llama.cpp's type for a prompt that is too long."""
_TOO_LONG_PARAMETERS = frozenset({"input_tokens", "input_text"})
"""The parameter that vLLM names in this case."""
_MESSAGE_CHARACTERS = 500


class ServerAway(Exception):
    """The server is unreachable or busy: retry the request later.

    `wait_seconds` is the wait that the server requests. `is_unreachable`: the connection failed.
    """

    def __init__(self, what: str, *, wait_seconds: float = 0.0, is_unreachable: bool = False) -> None:
        super().__init__(what)
        self.wait_seconds = wait_seconds
        self.is_unreachable = is_unreachable


class RequestFailed(Exception):
    """The server accepted a request and failed: the request or the server may be at fault."""


@contextmanager
def api_errors(base_url: str, api_key: str) -> Iterator[None]:
    """Convert the client's errors. Their messages never contain the key.

    Raises:
        SampleRefused: The server refuses this request.
        ServerAway, RequestFailed: See there.
        UsageError: The key, the model or the address is wrong.
    """
    try:
        yield
    except BrokenAnswer as exc:
        raise RequestFailed(f"its answer cannot be read: {exc}") from None
    except openai.APITimeoutError:
        raise RequestFailed("no answer in time (engine.timeout_seconds)") from None
    except openai.APIConnectionError as exc:
        if isinstance(exc.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
            raise ServerAway(f"no connection: {exc.__cause__}", is_unreachable=True) from None
        raise RequestFailed("the connection was lost") from None
    except openai.APIStatusError as exc:
        raise _classify(exc, base_url, api_key) from None


def _classify(exc: openai.APIStatusError, base_url: str, api_key: str) -> Exception:
    status = exc.status_code
    message = _clean(exc, api_key)
    if status in SHUT_OUT:
        return UsageError(explain_shut_out(status, base_url, "" if status in (401, 403) else message))
    if status in AWAY:
        asked_seconds = parse_retry_after(exc.response.headers.get("retry-after", ""))
        return ServerAway(f"HTTP {status}", wait_seconds=asked_seconds)
    if status in REFUSED:
        return SampleRefused(_choose_code(exc), f"the server refuses it (HTTP {status}): {message}")
    if status < 500 and status not in (408, 409):
        return SampleRefused("refused_by_engine", f"the server refuses it (HTTP {status}): {message}")
    return RequestFailed(f"HTTP {status}")


def explain_shut_out(status: int, base_url: str, message: str) -> str:
    """Return the message about a server that answers every request with `status`."""
    details = f" ({message})" if message else ""
    if status in (401, 403):
        return (
            f"{base_url} refuses access (HTTP {status}); export OPENAI_API_KEY=..., or name the "
            "variable with the key: --set 'engine.api_key=${NAME}'"
        )
    return (
        f"{base_url} has no such model or address (HTTP {status}){details}; a base URL usually ends with "
        "/v1, and --model takes a name that the server lists under /models"
    )


def _choose_code(exc: openai.APIStatusError) -> str:
    if exc.code == CONTENT_FILTER:
        return CONTENT_FILTER
    is_long = {exc.code, exc.type} & _TOO_LONG_CODES or exc.param in _TOO_LONG_PARAMETERS
    return "prompt_too_long" if is_long else "refused_by_engine"


def _clean(exc: openai.APIStatusError, api_key: str) -> str:
    """Return the server's message, shortened and without the key."""
    message = exc.body.get("message") if isinstance(exc.body, dict) else None
    text = " ".join(str(message or exc.response.reason_phrase).split())
    return text.replace(api_key, "...")[:_MESSAGE_CHARACTERS]
