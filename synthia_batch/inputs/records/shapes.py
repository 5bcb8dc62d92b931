"""Shapes of records from other programs: how each is detected, and parsed to a conversation.

ShareGPT: `conversations`, a list of messages. UltraChat: `data`, texts in turn. Alpaca, and Dolly: an
instruction, and what it refers to. OpenAI batch requests are in openai_batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.message_parts import describe
from synthia_batch.inputs.records.strict_json import is_blank

SYSTEM_COLUMN = "system"
"""The column of a row's own system message, in the shapes that have one."""
TURNS_OF_MESSAGES = "messages"
"""The shape of a column of turns that has conversations: their questions are played."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How records of one shape are detected and read.

    `known_by` are the columns that indicate it, together with one of `or_by` if there are any. `text` is
    the column of its conversation, of the `kind`; a job can also name it as one of `other_kinds`. `beside`
    are optional columns that are read with it; `tools` is that of tool definitions. `is_last`: a column that
    can be a prompt takes precedence.
    """

    name: str
    kind: str
    text: str
    known_by: frozenset[str]
    or_by: frozenset[str] = frozenset()
    other_kinds: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    tools: str | None = None
    id: str | None = None
    is_last: bool = False


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="openai-batch",
            kind="messages",
            text="body",
            known_by=frozenset({"custom_id", "body"}),
            beside=("method", "url"),
            tools="body",
            id="custom_id",
        ),
        Shape(
            name="sharegpt",
            kind="messages",
            text="conversations",
            known_by=frozenset({"conversations"}),
            other_kinds=("turns",),
            beside=(SYSTEM_COLUMN,),
            tools="tools",
        ),
        Shape(
            name="alpaca",
            kind="prompt",
            text="instruction",
            known_by=frozenset({"instruction"}),
            or_by=frozenset({"input", "context", "history", SYSTEM_COLUMN}),
            beside=("input", "context", "history", SYSTEM_COLUMN),
        ),
        Shape(name="ultrachat", kind="messages", text="data", known_by=frozenset({"data"}), is_last=True),
    )
}


def find_shape(names: Sequence[str]) -> Shape | None:
    """Return the shape that these column names indicate, or None."""
    given = set(names)
    return next(
        (
            shape
            for shape in SHAPES.values()
            if shape.known_by <= given and (not shape.or_by or shape.or_by & given)
        ),
        None,
    )


SEPARATOR = "\n"
"""Between instruction and input, as LLaMA-Factory joins them."""


def parse_instruction(values: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """Return the conversation that ends with the instruction in `column` and what it refers to.

    Raises:
        RowFault: One of them has another type, or the instruction is blank.
    """
    instruction = _read_text(values, column)
    if instruction is None:
        fault = "is blank" if values.get(column) is not None else "must be a string, not null"
        raise RowFault(f"column {column!r} {fault}")
    about = [text for name in ("input", "context") if (text := _read_text(values, name)) is not None]
    question = Message("user", SEPARATOR.join([instruction, *about]))
    return (*read_system(values), *_read_history(values.get("history")), question)


def read_system(values: Mapping[str, Any]) -> tuple[Message, ...]:
    text = _read_text(values, SYSTEM_COLUMN)
    return () if text is None else (Message("system", text),)


def add_system(messages: tuple[Message, ...], values: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return `messages` after the system message of their record, which they may repeat. Raises RowFault."""
    system = read_system(values)
    if not system or messages[0].role != "system":
        return (*system, *messages)
    if messages[0].content != system[0].content:
        raise RowFault(
            f"the conversation begins with another system message than column {SYSTEM_COLUMN!r} has; "
            "remove one of them"
        )
    return messages


def _read_text(values: Mapping[str, Any], column: str) -> str | None:
    """Return the text in `column`, or None if it is missing, null or blank."""
    text = values.get(column)
    if text is not None and type(text) is not str:
        raise RowFault(f"column {column!r} must be a string, not {describe(text)}")
    return None if text is None or is_blank(text) else text


def _read_history(history: Any) -> tuple[Message, ...]:
    """Return the earlier messages in `history`: a list of pairs of question and answer."""
    if history is None:
        return ()
    is_pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(text) is str for text in pair)
        for pair in history
    )
    if not is_pairs:
        raise RowFault("column 'history' must be a list of pairs of texts: question and answer")
    return tuple(
        Message(role, text)
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    )
