"""Secrets of a job, held as references: `${NAME}` is an environment variable.

Saved and shown jobs contain the reference; `reveal` is called where the secret is used. A secret that
is written out is used unchanged, never shown, and not saved with the run.
"""

import re
from collections.abc import Mapping
from typing import Any

from synthia_batch.errors import UsageError

SECRET_KEYS = frozenset({"notify", "engine.hf_token", "engine.api_key"})
"""The keys that may hold a password or a token. None of them is part of a job's identity."""
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A reference to an environment variable."""
_SCHEME = r"(?:[A-Za-z][A-Za-z0-9+.-]*://)?"
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
    return REFERENCE.sub(lambda found: environment[found[1]], text)


def reveal_settings(settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the engine's `settings` with their secrets revealed."""
    return {
        name: reveal(value, environment, f"engine.{name}")
        if isinstance(value, str) and f"engine.{name}" in SECRET_KEYS
        else value
        for name, value in settings.items()
    }


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
    return f"{scheme}://..." if separator else "..."


def drop_written_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's nested `values` without the secrets that are not references."""
    kept = dict(values)
    for key in SECRET_KEYS:
        section, _, name = key.rpartition(".")
        holder = dict(kept.get(section, {})) if section else kept
        if name in holder and mask(holder[name]) != _to_list(holder[name]):
            del holder[name]
            if section:
                kept[section] = holder
    return kept


def _to_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
