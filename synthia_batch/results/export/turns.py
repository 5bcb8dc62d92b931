"""Messages in the shapes of other programs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from synthia_batch.core.types import Message

_SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def list_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's shape."""
    return [turn.to_dict() for turn in messages]


def find_calls(turn: Message) -> Sequence[Mapping[str, Any]]:
    return (turn.extra or {}).get("tool_calls") or ()


def list_spoken(turn: Message) -> list[dict[str, str]]:
    """Return a message in ShareGPT's shape, each of its tool calls as a message of its own."""
    spoken = [
        {"from": "function_call", "value": json.dumps(call["function"], ensure_ascii=False)}
        for call in find_calls(turn)
    ]
    if spoken and not turn.content:
        return spoken
    return [{"from": _SHAREGPT_NAMES.get(turn.role, turn.role), "value": turn.content}, *spoken]
