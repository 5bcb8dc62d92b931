"""Conversations: what is accepted, what is refused."""

import json
from typing import Any

import pytest

from synthia_batch.core.types import Message
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.messages import parse_messages

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "value",
    [
        [USER],
        [SYSTEM, USER],
        [USER, ASSISTANT, USER],
        [USER, USER],
        [SYSTEM, ASSISTANT, USER],
        [{**USER, "name": "Ann", "weight": 1, "tool_calls": None}],
    ],
)
def test_a_conversation_that_ends_with_the_user_is_accepted(value: list[dict[str, Any]]) -> None:
    expected = tuple(Message(item["role"], item["content"]) for item in value)
    assert parse_messages(value) == expected
    assert parse_messages(json.dumps(value)) == expected


def test_text_parts_are_joined_by_line_ends() -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "text", "text": "Why?"}]
    assert parse_messages([{"role": "user", "content": parts}]) == (Message("user", "Look:\nWhy?"),)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "not null"),
        (5, "not a number"),
        (True, "not a boolean"),
        ({}, "not an object"),
        ([], "empty list"),
        (["Why?"], "message 1 must be an object"),
        ([USER, None], "message 2 must be an object"),
        ([{"content": "a"}], "has the role null; it must be one of system, user, assistant"),
        ([{"role": "developer", "content": "a"}, USER], "has the role 'developer'"),
        ([{"role": "tool", "content": "a"}, USER], "has the role 'tool'"),
        ([{"role": ["user"], "content": "a"}], "has the role an array"),
        ([{"from": "human", "value": "a"}], "set --input-format sharegpt"),
        ([{"role": "user"}], "must be a string, not null"),
        ([{"role": "user", "content": 1}], "must be a string, not a number"),
        ([{"role": "user", "content": " \n"}], "is blank"),
        ([{"role": "user", "content": []}], "is blank"),
        ([{"role": "user", "content": ["a"]}], "has a part that is not text (a string)"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text ('image_url')"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "not text ('text')"),
        ([USER, SYSTEM, USER], "only the first message may be a system message"),
        ([SYSTEM, SYSTEM, USER], "only the first message may be a system message"),
        ([USER, ASSISTANT], "must be from the user, not the assistant"),
        ([SYSTEM], "must be from the user, not the system"),
        ([{**ASSISTANT, "tool_calls": [{}]}, USER], "tool calls are not supported"),
        ("[{", "messages is a string, and as JSON not valid JSON"),
        ('[{"role": "user", "content": "\\ud800"}]', "lone surrogate"),
        ('[{"role": "user", "role": "user", "content": "a"}]', "'role' appears twice"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("5", "not a number"),
    ],
)
def test_any_other_value_is_refused(value: Any, fault: str) -> None:
    with pytest.raises(RowFault) as caught:
        parse_messages(value)
    assert fault in str(caught.value)
