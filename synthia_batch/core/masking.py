"""The one place that hides secrets: in addresses, in messages, and in nested settings.

Two things are hidden. What an address may carry as a secret (user, password, query) is hidden wherever an
address is shown or saved. A secret that this process has used is hidden wherever it turns up again, such as
in a server's error message.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

HIDDEN = "..."
"""Stands for a secret."""
SHORTEST = 6
"""Characters of the shortest secret that is hidden wherever it turns up: shorter ones are ordinary words."""
_SHORTEST_PARAMETER = 12
"""The same for the values of a query, most of which are no secrets."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>`\\]+")
_PARTS = re.compile(r"([^/?#]*@)?([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)
_SECRET_NAME = re.compile(
    r"(?:.*[_-])?(?:(?:api|access|secret|private|auth|subscription|account)[_-]?(?:key|token)"
    r"|(?:hf|session|security|bearer|refresh|id)[_-]token"
    r"|password|passwd|secret|authorization|credentials?|signature|cookie)|token",
    re.IGNORECASE,
)
_used: set[str] = set()


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret, such as api_key, accessToken or authorization."""
    return _SECRET_NAME.fullmatch(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)) is not None


def mask_address(url: str) -> str:
    """Return the address with `...` for user, password and query: https://...@host/path?..."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    user, host, path, query = _split(rest)
    return f"{scheme}://{f'{HIDDEN}@' if user else ''}{host}{path}{f'?{HIDDEN}' if query else ''}"


def mask_if_address(text: str) -> str:
    """Return `text` with the secrets hidden if all of it is an address, else unchanged."""
    return mask_address(text) if _ADDRESS.fullmatch(text) else text


def strip_address(url: str) -> str:
    """Return the address without user, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    _, host, path, _ = _split(rest)
    return urlunsplit((scheme.lower(), host, path, "", ""))


def is_masked(url: str) -> bool:
    """Whether `url` is an address without its secrets, as `mask_address` returns it."""
    return f"://{HIDDEN}@" in url or ("://" in url and url.endswith(f"?{HIDDEN}"))


def remember_secret(value: str) -> None:
    """Hide `value` from now on wherever it turns up in a message."""
    if len(value) >= SHORTEST:
        _used.add(value)


def remember_address(url: str) -> None:
    """Hide the password and the secret parameters of `url` from now on wherever they turn up."""
    try:
        parts = urlsplit(url)
        parameters = parse_qsl(parts.query)
    except ValueError:
        return
    for password in {parts.password or "", unquote(parts.password or "")}:
        remember_secret(password)
    for name, value in parameters:
        if is_secret_name(name) or len(value) >= _SHORTEST_PARAMETER:
            remember_secret(value)


def mask_known(text: str) -> str:
    """Return `text` without the secrets that this process has used."""
    for secret in sorted(_used, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def mask_text(text: str) -> str:
    """Return a message without the secrets that this process has used, and without those of addresses.

    For messages only: in data, such as a prompt, an address is no secret.
    """
    if "://" in text:
        text = _ADDRESS.sub(lambda found: mask_address(found[0]), text)
    return mask_known(text)


def mask_values(value: Any) -> Any:
    """Return JSON values with every text in them masked like a message."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {key: mask_values(entry) for key, entry in value.items()}
    return [mask_values(entry) for entry in value] if isinstance(value, list | tuple) else value


def change_secret_fields(value: Any, change: Callable[[str], Any]) -> Any:
    """Return nested `value` with `change(text)` for the text of each field that has a secret's name.

    A field for which `change` returns None is left out.
    """
    if isinstance(value, list | tuple):
        return [change_secret_fields(entry, change) for entry in value]
    if not isinstance(value, Mapping):
        return value
    changed = {
        key: change(entry)
        if isinstance(entry, str) and is_secret_name(str(key))
        else change_secret_fields(entry, change)
        for key, entry in value.items()
    }
    return {key: entry for key, entry in changed.items() if entry is not None or value[key] is None}


def _split(rest: str) -> tuple[str, str, str, str]:
    """Return user, host, path and query of an address without its scheme."""
    found = _PARTS.match(rest)
    user, host, path, query, _ = found.groups() if found else ("", rest, "", "", "")
    port = host.rpartition("]")[2].partition(":")[2]
    if port and not port.isdigit() and "@" in rest:  # A password with /, ? or # in it.
        secret, _, rest = rest.rpartition("@")
        return secret, *_split(rest)[1:]
    return user or "", host, path, query or ""
