"""Shapes of records from other programs: how each is detected, and parsed to a conversation.

ShareGPT: `conversations`, a list of objects with from and value. Alpaca: an instruction, and optionally
the input that it refers to. OpenAI batch requests are in openai_batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.messages import check_order, describe
from synthia_batch.inputs.records.strict_json import parse_json_text

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
}


def parse_conversation(value: Any) -> tuple[Message, ...]:
    """Return the conversation up to its last question; later answers are regenerated.

    Raises:
        RowFault: It is not such a conversation, or has no question.
    """
    messages = _parse_all(value)
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    if last < 0:
        raise RowFault("the conversation has no message from human, so there is nothing to answer")
    messages = messages[: last + 1]
    check_order(messages)
    return messages


def parse_questions(value: Any) -> tuple[Message, ...]:
    """Return the system message and the questions of the conversation; all answers are regenerated."""
    return tuple(message for message in parse_conversation(value) if message.role != "assistant")


def _parse_all(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = parse_json_text(value, "messages")
    if not isinstance(value, list):
        raise RowFault(f"must be a list of objects with from and value, not {describe(value)}")
    return tuple(_parse_message(item, number) for number, item in enumerate(value, start=1))


def _parse_message(item: Any, number: int) -> Message:
    if not isinstance(item, dict) or "from" not in item or "value" not in item:
        raise RowFault(f"message {number} must be an object with from and value, not {describe(item)}")
    speaker, text = item["from"], item["value"]
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        shown = repr(speaker[:40]) if isinstance(speaker, str) else describe(speaker)
        raise RowFault(f"message {number} is from {shown}; it must be one of {', '.join(_ROLES)}")
    if not isinstance(text, str):
        raise RowFault(f"the value of message {number} must be a string, not {describe(text)}")
    if not text or text.isspace():
        raise RowFault(f"the value of message {number} is blank")
    return Message(role, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How records of one shape are detected and read.

    `known_by` are the columns that indicate it. `text` is the column of its conversation, of the `kind`;
    a job can also name it as one of `other_kinds`. `beside` are optional columns that are read with it.
    """

    name: str
    kind: str
    text: str
    known_by: frozenset[str]
    other_kinds: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    id: str | None = None


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="openai-batch",
            kind="messages",
            text="body",
            known_by=frozenset({"custom_id", "body"}),
            beside=("method", "url"),
            id="custom_id",
        ),
        Shape(
            name="sharegpt",
            kind="messages",
            text="conversations",
            known_by=frozenset({"conversations"}),
            other_kinds=("turns",),
        ),
        Shape(
            name="alpaca",
            kind="prompt",
            text="instruction",
            known_by=frozenset({"instruction", "input"}),
            beside=("input",),
        ),
    )
}


def find_shape(names: Sequence[str]) -> Shape | None:
    """Return the shape that these column names indicate, or None."""
    return next((shape for shape in SHAPES.values() if shape.known_by <= set(names)), None)


SEPARATOR = "\n"
"""Between instruction and input, as LLaMA-Factory joins them."""


def parse_instruction(values: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """Return one question: the instruction in `column`, followed by the input.

    Raises:
        RowFault: One of them is not text, or the instruction is blank.
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
