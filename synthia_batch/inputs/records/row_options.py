"""Parses a row's own tools and sampling settings, for every format."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from synthia_batch.core.types import RowSampling
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.message_parts import describe
from synthia_batch.inputs.records.strict_json import is_blank, parse_json_text
from synthia_batch.job.sampling import RowKeys, explain_row_fault
from synthia_batch.job.structured_check import check_structure


def parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the definitions in `value`: a list in OpenAI's shape, or its JSON text. Blank and null are none.

    Each is an object with `type` `function` and a `function` with a name, and optionally a description
    and parameters: a JSON Schema; or such a function on its own. Other keys are passed to the chat
    template unchanged. Raises RowFault.
    """
    if isinstance(value, str):
        value = None if is_blank(value) else parse_json_text(value, "tools")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RowFault(f"tools must be a list of definitions, not {describe(value)}")
    tools = tuple(_check_tool(tool, number) for number, tool in enumerate(value, start=1))
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RowFault(f"the tool {twice!r} is defined twice")
    return tools


def _check_tool(tool: Any, number: int) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise RowFault(f"tool {number} must be an object with type and function, not {describe(tool)}")
    if tool.get("type") is None and "name" in tool:  # A function on its own, as in ShareGPT files.
        tool = {"type": "function", "function": tool}
    if tool.get("type") != "function":
        raise RowFault(f"tool {number} has the type {tool.get('type')!r}; it must be 'function'")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise RowFault(f"tool {number} has no function, an object with its name; it is {describe(function)}")
    name = function.get("name")
    if not isinstance(name, str) or not name or name.isspace():
        raise RowFault(f"the function of tool {number} has no name")
    for key, kind, word in (
        ("description", str, "a string"),
        ("parameters", dict, "a JSON Schema, an object"),
    ):
        if function.get(key) is not None and not isinstance(function[key], kind):
            raise RowFault(f"tool {name!r}: {key} must be {word}, not {describe(function[key])}")
    return dict(tool)


NOTHING = RowSampling()
"""The settings of a row that leaves everything to the job."""


def parse_sampling(value: Any) -> RowSampling:
    """Return the settings in `value`: an object, its JSON text, or pairs of a map. Blank and null are none.

    A key with the value null is left to the job: a Parquet struct has all its keys in every row.

    Raises:
        RowFault: It is anything else, has an unknown key, or an invalid value.
    """
    if isinstance(value, str):
        value = None if is_blank(value) else parse_json_text(value, "sampling", subject="")
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)  # pyarrow returns a map as pairs.
    if value is None:
        return NOTHING
    if not isinstance(value, dict):
        raise RowFault(f'must be an object such as {{"temperature": 0}}, not {describe(value)}')
    given = {key: entry for key, entry in value.items() if entry is not None}
    if not given:
        return NOTHING
    try:
        sampling = RowKeys.model_validate(given).to_row()
        if sampling.structure is not None:
            check_structure(sampling.structure)
    except ValidationError as exc:
        raise RowFault(explain_row_fault(exc)) from exc
    except ValueError as exc:
        raise RowFault(f"structured: {exc}") from exc
    return sampling
