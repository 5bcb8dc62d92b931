"""How to rewrite JSON documents that hold the rows below, instead of one row a line."""

import json
import re
from collections.abc import Mapping
from typing import Any

from synthia_batch.inputs.records.conversation_forms import PAIRS

_FIRST_ENTRY = re.compile(r'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:\s*([\[{])')
_MESSAGE_NAMES = {"role", "from", *(name for pair in PAIRS for name in pair)}
_BY_ID = "`jq -c 'to_entries[] | {id: .key} + .value' OLD > NEW.jsonl`"


def describe_document(record: Mapping[str, Any]) -> str:
    """Return the advice for a file whose only row is `record`, empty if that does not hold rows itself."""
    for name, value in record.items():
        entries = value if isinstance(value, list) else []
        is_rows = all(isinstance(entry, dict) and not entry.keys() & _MESSAGE_NAMES for entry in entries)
        if entries and is_rows:
            return _unpack(name)
    if record and all(isinstance(value, dict) for value in record.values()):
        return f"if its entries are the rows, by their ids, write each on a line: {_BY_ID}"
    return ""


def describe_start(text: str) -> str:
    """Return the advice for an object over several lines that begins with `text`."""
    found = _FIRST_ENTRY.match(text)
    try:
        name = json.loads(found[1]) if found else None
    except ValueError:
        name = None
    one = "write one row a line, such as with `jq -c . OLD > NEW.jsonl`"
    if found is None or name is None:
        return f"{one}, or `jq -c '.NAME[]' OLD > NEW.jsonl` for rows under a name"
    return _unpack(name) if found[2] == "[" else f"{one}, or for rows by their ids {_BY_ID}"


def _unpack(name: str) -> str:
    path = f".{name}" if name.isascii() and name.isidentifier() else f".[{json.dumps(name[:80])}]"
    command = f"`jq -c '{path}[]' OLD > NEW.jsonl`"
    return f"if the rows are the entries of {name[:80]!r}, write each on a line: {command}"
