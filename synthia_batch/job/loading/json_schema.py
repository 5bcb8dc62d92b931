"""The JSON Schema of a job file, for editors: keys, values, defaults and descriptions."""

import inspect
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from synthia_batch.job.schema import Job

DIALECT = GenerateJsonSchema.schema_dialect
_ONE_OR_MORE = ("system", "notify", "stop", "bad_words", "choice")
"""Lists of texts that may also be a single text."""
_BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""Pydantic keeps its own names for bounds after a custom validator."""


def make_schema() -> dict[str, Any]:
    """Return the schema, in the dialect 2020-12. Unlike `run` it requires text to be quoted."""
    schema = Job.model_json_schema()
    sections = schema.pop("$defs")
    for section in (schema, *sections.values()):
        _tidy(section)
    schema["$defs"] = sections
    head = {"$schema": DIALECT, "title": "A job file of synthia-batch"}
    return {**head, **{key: value for key, value in schema.items() if key != "title"}}


def _tidy(section: dict[str, Any]) -> None:
    """Change Pydantic's schema of a section so that editors display it well."""
    # Not required: a flag beside `-j` may set it.
    section.pop("required", None)
    section["description"] = inspect.cleandoc(section.get("description", "")).replace("\n", " ")
    for name, entry in section.get("properties", {}).items():
        entry.pop("title", None)
        if "description" in entry:
            entry["description"] = " ".join(entry["description"].split())
        if "$ref" in entry or entry.get("default", 0) is None:
            entry.pop("default", None)
        for kind in (entry, *entry.get("anyOf", ())):
            for ours, word in _BOUNDS.items():
                if ours in kind:
                    kind[word] = kind.pop(ours)
        if name in _ONE_OR_MORE:
            _accept_one(entry)


def _accept_one(entry: dict[str, Any]) -> None:
    kinds = entry.pop("anyOf", None) or [{key: entry.pop(key) for key in ("type", "items") if key in entry}]
    if any(kind.get("items") == {} for kind in kinds):  # Of any values: `choice` of a drawn column.
        entry["anyOf"] = kinds
        return
    entry["anyOf"] = [{"type": "string", "minLength": 1}, *kinds]
