"""Conversion between nested sections and dotted keys, as in `--set` and `plan`."""

import re
from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": 1} for {"a": {"b": 1}}. An empty section is kept as a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for the key "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merge_values(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the keys of `above` replaced, section by section."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge_values(merged[key], value)
        else:
            merged[key] = value
    return merged


def spell_key(key: str) -> str:
    """Return the dotted `key` with list entries in brackets: `stop[1]`."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", key)


def drop_numbers(key: str) -> str:
    """Return the dotted key of the list, if `key` is that of an entry."""
    return re.sub(r"(\.\d+)+$", "", key)
