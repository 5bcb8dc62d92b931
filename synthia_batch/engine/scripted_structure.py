"""Answers of a structure, for rehearsals: valid, and drawn by digits of a hash.

Of JSON Schema the plain keywords are known, of regular expressions and grammars nothing: an engine without
weights has no backend for them.
"""

import json
from collections.abc import Iterator
from typing import Any

from synthia_batch.core.types import Structure


def write_structured(structure: Structure, picks: bytes) -> str | None:
    """Return an answer of `structure`, or None where that takes more than is known here."""
    drawn = iter(picks * 64)
    if structure.kind == "choice":
        choices: list[str] = json.loads(structure.text)
        return choices[next(drawn) % len(choices)]
    if structure.kind == "json_schema":
        return json.dumps(_draw(json.loads(structure.text), drawn), ensure_ascii=False)
    return None


def _draw(schema: dict[str, Any], drawn: Iterator[int]) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][next(drawn) % len(schema["enum"])]
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    pick = next(drawn, 0)
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {})
        return {name: _draw(inner, drawn) for name, inner in properties.items()}
    if kind == "array":
        count = max(schema.get("minItems", 0), 1)
        return [_draw(schema.get("items", {"type": "integer"}), drawn) for _ in range(count)]
    if kind == "string":
        text = f"text {pick}".ljust(schema.get("minLength", 0), "x")
        return text[: schema.get("maxLength")]
    if kind in ("integer", "number"):
        return min(max(pick, schema.get("minimum", pick)), schema.get("maximum", pick))
    return pick % 2 == 0 if kind == "boolean" else None
