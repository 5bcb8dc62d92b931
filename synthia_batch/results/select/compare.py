"""What equal values have in common, whatever they are."""

import json
from collections.abc import Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from blake3 import blake3
from jinja2 import Undefined

from synthia_batch.inputs.records.expressions import ExpressionFailed
from synthia_batch.results.select.near import SIGNATURE_BYTES, sign

DIGEST_BYTES = 16


def digest_value(value: Any) -> bytes:
    """Return what equal values have in common, DIGEST_BYTES long; zeros for nothing, which equals nothing."""
    if isinstance(value, Undefined):
        return bytes(DIGEST_BYTES)
    return blake3(encode_value(value).encode()).digest(length=DIGEST_BYTES)


def sign_value(value: Any) -> bytes:
    """Return the signature of a value as a text; zeros for nothing."""
    return bytes(SIGNATURE_BYTES) if isinstance(value, Undefined) else sign(spell_value(value))


def spell_value(value: Any) -> str:
    """Return a text as it is, and any other value as JSON. Raises as `encode_value`."""
    return value if isinstance(value, str) else encode_value(value)


def encode_value(value: Any) -> str:
    """Return a text that equal values have in common. Raises ExpressionFailed if that cannot be known."""
    try:
        return json.dumps(value, sort_keys=True, default=_spell)
    except (TypeError, ValueError) as exc:
        raise ExpressionFailed(f"it cannot be compared: {exc}") from exc


def _spell(value: Any) -> Any:
    """Return a value that JSON has no form for, such as a date, as its type and text; nothing as null."""
    if isinstance(value, Undefined):
        return None
    if isinstance(value, Iterator):
        return list(value)
    if isinstance(value, date | time | timedelta | Decimal | bytes):
        return [type(value).__name__, str(value)]
    raise TypeError(f"a {type(value).__name__} has no text of its own")
