"""Checks of structures, as far as they do not depend on the engine's backend."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from synthia_batch.core.errors import UsageError
from synthia_batch.core.formatting import clip
from synthia_batch.core.types import Structure

MOST_NESTED = 64
"""Levels of objects and arrays in a schema: vLLM refuses more (sampling_params.py of 0.32.0)."""


@lru_cache(maxsize=256)
def check_structure(structure: Structure) -> None:
    """Return if `structure` is valid.

    Raises:
        ValueError: It is not. The message has the reason, without a place.
    """
    if structure.kind == "json_schema":
        open_validator(structure.text)
    elif structure.kind == "regex":
        compile_regex(structure.text)
    elif structure.kind == "choice":
        texts = json.loads(structure.text)
        if len(set(texts)) < len(texts):
            raise ValueError("choice: a text is there twice; name each once")
    elif not structure.text.strip():
        raise ValueError("grammar: it is empty")


@lru_cache(maxsize=256)
def open_validator(text: str) -> Validator:
    """Return a validator for the schema in `text`, of the draft that it names, or 2020-12.

    Raises:
        ValueError: It is not a schema.
    """
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError('json_schema: must be an object such as {"type": "object"}')
    kind: Any = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as exc:
        place = "/".join(map(str, exc.absolute_path))
        raise ValueError(f"json_schema: {f'at {place}: ' if place else ''}{clip(exc.message, 200)}") from exc
    except RecursionError as exc:
        raise ValueError(f"json_schema: nested more than {MOST_NESTED} deep") from exc
    validator: Validator = kind(schema)
    return validator


@lru_cache(maxsize=256)
def compile_regex(text: str) -> re.Pattern[str]:
    """Return the compiled pattern for answers.

    Raises:
        ValueError: Python's `re` cannot read it, so answers could not be checked.
    """
    if "\0" in text:
        raise ValueError("regex: it holds a NUL, which the engine refuses")
    try:
        return re.compile(text)
    except re.error as exc:
        raise ValueError(f"regex: {exc}") from exc


def read_schema(path: Path) -> Any:
    """Return the JSON value in the file at `path`. Raises UsageError if it cannot be read, or is not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as exc:
        raise UsageError(f"{path}:{exc.lineno}:{exc.colno}: not valid JSON: {exc.msg}") from exc
    except RecursionError as exc:
        raise UsageError(f"{path}: nested too deeply for a schema") from exc


def read_text(path: Path) -> str:
    """Return the text of the file at `path`. Raises UsageError if it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: not UTF-8 at byte {exc.start}; save it as UTF-8") from exc
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}; check the path") from exc
