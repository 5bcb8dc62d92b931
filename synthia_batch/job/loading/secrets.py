"""Secrets of a job, held as references: `${NAME}` is an environment variable.

Saved and shown jobs contain the reference; `reveal` is called where the secret is used. A secret that
is written out is used unchanged, never shown, and not saved with the run.
"""

import re
from collections.abc import Mapping
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.masking import (
    HIDDEN,
    change_secret_fields,
    is_secret_name,
    mask_if_address,
    remember_address,
    remember_secret,
)

SECRET_KEYS = frozenset({"notify", "engine.hf_token", "engine.api_key"})
"""The keys that may hold a password or a token. None of them is part of a job's identity."""
ADDRESS_KEYS = frozenset({"input.path", "output", "engine.base_url", "pool.ray_address"})
"""The keys that may hold an address, which may hold a password or a signature."""
EXTRA_BODY = "engine.extra_body"
"""The key whose fields, sent with every request, may have the name of a secret, such as api_key."""
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A reference to an environment variable."""
_SCHEME = r"(?:Bearer |[A-Za-z][A-Za-z0-9+.-]*://)?"
_ONLY_REFERENCES = re.compile(rf"{_SCHEME}(?:{REFERENCE.pattern}|[/:@?&=])*")


def reveal(text: str, environment: Mapping[str, str], key: str) -> str:
    """Return `text` with its `${NAME}` references replaced. `key` is the job's, for the message.

    Raises:
        UsageError: A referenced variable is not set.
    """
    for name in REFERENCE.findall(text):
        if not environment.get(name):
            raise UsageError(
                f"{key}: the environment variable {name} is not set; `export {name}=...`, then run again"
            )
        remember_secret(environment[name])
    revealed = REFERENCE.sub(lambda found: environment[found[1]], text)
    remember_address(revealed)
    return revealed


def reveal_settings(settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the engine's `settings` with their secrets revealed."""
    return {name: _reveal_setting(f"engine.{name}", value, environment) for name, value in settings.items()}


def _reveal_setting(key: str, value: Any, environment: Mapping[str, str]) -> Any:
    if key == EXTRA_BODY:
        return change_secret_fields(value, lambda text: _reveal_secret(text, environment, key))
    is_secret = isinstance(value, str) and key in SECRET_KEYS
    return _reveal_secret(value, environment, key) if is_secret else value


def _reveal_secret(text: str, environment: Mapping[str, str], key: str) -> str:
    secret = reveal(text, environment, key)
    remember_secret(secret)
    return secret


def is_secret_key(key: str) -> bool:
    """Whether the dotted `key` of a job, without the numbers of list entries, may hold a secret."""
    return key in SECRET_KEYS or (key.startswith(f"{EXTRA_BODY}.") and is_secret_name(key.rpartition(".")[2]))


def is_reference(text: str) -> bool:
    """Whether `text` has only references and a URL's punctuation, and nothing of the secret itself."""
    return bool(REFERENCE.search(text)) and _ONLY_REFERENCES.fullmatch(text) is not None


def mask(value: Any) -> Any:
    """Return a secret's value for display: references unchanged, and only the scheme of a URL."""
    if isinstance(value, list | tuple):
        return [mask(entry) for entry in value]
    if not isinstance(value, str) or is_reference(value):
        return value
    scheme, separator, _ = value.partition("://")
    return f"{scheme}://{HIDDEN}" if separator else HIDDEN


def mask_value(key: str, value: Any) -> Any:
    """Return the value of the dotted `key` of a job for display, without the secrets in it."""
    if is_secret_key(key):
        return mask(value)
    if isinstance(value, Mapping):
        prefix = f"{key}." if key else ""
        return {name: mask_value(f"{prefix}{name}", entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [mask_value(key, entry) for entry in value]
    return mask_if_address(value) if isinstance(value, str) and key in ADDRESS_KEYS else value


def drop_written_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's nested `values` without the secrets that are not references.

    Addresses are kept with `...` in place of theirs, and refused so when the job is run again.
    """
    kept = dict(values)
    for key in SECRET_KEYS:
        section, _, name = key.rpartition(".")
        holder = dict(kept.get(section, {})) if section else kept
        if name in holder and mask(holder[name]) != _to_list(holder[name]):
            del holder[name]
            if section:
                kept[section] = holder
    return {name: mask_value(name, value) for name, value in kept.items()}


def _to_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
