"""Alpaca: an instruction, and where there is one, the input that it is about."""

from collections.abc import Mapping
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.source.faults import RowFault
from synthia_batch.source.messages import describe

SEPARATOR = "\n"
"""Between instruction and input, as LLaMA-Factory joins them."""


def parse_instruction(values: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """Return the question that the instruction in `column` and the input make together.

    Raises:
        RowFault: One of them is no text, or the instruction is blank.
    """
    instruction, about = values.get(column), values.get("input")
    if type(instruction) is not str:
        raise RowFault(f"column {column!r} must be a string, not {describe(instruction)}")
    if not instruction or instruction.isspace():
        raise RowFault(f"column {column!r} is blank")
    if about is not None and type(about) is not str:
        raise RowFault(f"column 'input' must be a string, not {describe(about)}")
    has_input = about is not None and about.strip() != ""
    return (Message("user", f"{instruction}{SEPARATOR}{about}" if has_input else instruction),)
