"""ShareGPT: `conversations`, a list of objects with from and value."""

from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.source.faults import RowFault
from synthia_batch.source.messages import check_order, describe
from synthia_batch.source.strict_json import parse_json_text

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
    """Return the conversation up to its last question: the answers behind it are to be made again.

    Raises:
        RowFault: It is no such conversation, or has no question.
    """
    messages = _parse_all(value)
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    if last < 0:
        raise RowFault("the conversation has no message from human, so there is nothing to answer")
    messages = messages[: last + 1]
    check_order(messages)
    return messages


def parse_questions(value: Any) -> tuple[Message, ...]:
    """Return the questions of the conversation, behind its system message: all answers are made again.

    Raises:
        RowFault: As for `parse_conversation`.
    """
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
