"""Strict JSON: deviations from the standard that Python's parser accepts are faults here."""

import json
from typing import Any

from synthia_batch.inputs.records.faults import RowFault

MAX_NESTING = 100
"""Levels of arrays and objects; far below Python's recursion limit, whatever the call depth."""


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        RowFault: It is invalid, repeats a name within an object, holds a number without a value (NaN,
            Infinity, 1e999), or is nested over 100 deep.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as exc:
        raise RowFault(f"not valid JSON: {exc.msg}, at column {exc.pos + 1}") from exc
    except RecursionError as exc:
        raise RowFault(_TOO_DEEP) from exc
    except ValueError as exc:  # An integer of more digits than Python converts.
        raise RowFault("a number of thousands of digits; write it as a string") from exc
    if text.count("[") + text.count("{") > MAX_NESTING and _is_too_deep(value):
        raise RowFault(_TOO_DEEP)
    return value


def may_hold_surrogates(text: str) -> bool:
    """Return whether the value of a JSON text can hold a surrogate: only an escape can produce one."""
    return "\\ud" in text or "\\uD" in text


def check_encodable(name: str, value: Any) -> None:
    """Raise RowFault if a string in `value`, of the column `name`, holds a lone surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        code = ord(exc.object[exc.start])
        raise RowFault(
            f"column {name!r} holds a lone surrogate (\\u{code:04x}), half of a character"
        ) from exc


def parse_json_text(text: str, name: str, *, subject: str | None = None) -> Any:
    """Return the value of a field `name` that is JSON within a string.

    `subject` begins the message of a fault; the default is the name. Raises RowFault.
    """
    subject = f"{name} " if subject is None else subject
    try:
        value = parse_json(text)
    except RowFault as exc:
        raise RowFault(f"{subject}is a string, and as JSON {exc}") from exc
    if may_hold_surrogates(text):
        check_encodable(name, value)
    return value


def is_blank(text: str) -> bool:
    """Return whether `text` is empty or only whitespace."""
    return not text or text.isspace()


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowFault(f"the name {twice!r} appears twice in one object; remove one of them")
    return value


def _make_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise RowFault(f"the number {text[:40]} is larger than any floating-point number")
    return value


def _refuse_constant(text: str) -> None:
    raise RowFault(f"not valid JSON: {text} is not a number; write null for a missing value")


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


_TOO_DEEP = f"nested more than {MAX_NESTING} deep"
_DECODER = json.JSONDecoder(
    object_pairs_hook=_make_object, parse_float=_make_float, parse_constant=_refuse_constant
)
