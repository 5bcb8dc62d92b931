"""Definitions of tools in OpenAI's shape: what is accepted, the same for every format."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.source.faults import RowFault
from synthia_batch.source.messages import describe
from synthia_batch.source.strict_json import is_blank, parse_json_text


def parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the definitions in `value`: a list of them, or its JSON text. Blank, null and [] are none.

    Each is an object with `type` `function` and a `function` that has a name, and may have a description
    and parameters: a JSON Schema. What else there is in it goes to the chat template as it stands.

    Raises:
        RowFault: It is anything else.
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
        raise RowFault(f"the tool {twice!r} is there twice")
    return tools


def _check_tool(tool: Any, number: int) -> Mapping[str, Any]:
    if not isinstance(tool, dict):
        raise RowFault(f"tool {number} must be an object with type and function, not {describe(tool)}")
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
    return tool
