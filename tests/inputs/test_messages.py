"""Conversations: what is accepted, what is refused."""

import json
from typing import Any

import pytest

from synthia_batch.core.types import Message
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.messages import (
    check_question,
    drop_final_answers,
    parse_messages,
    pick_questions,
)

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
        [{**USER, "weight": 1, "tool_calls": None}],
        [USER, SYSTEM, USER],
        [{"role": "developer", "content": "Be brief."}, USER],
        [USER, ASSISTANT, {"role": "tool", "content": "4"}],
    ],
)
def test_a_conversation_with_a_message_to_answer_is_taken_as_it_is(value: list[dict[str, Any]]) -> None:
    expected = tuple(Message(item["role"], item["content"]) for item in value)
    assert parse_messages(value) == expected
    assert parse_messages(json.dumps(value)) == expected
    check_question(expected, "refuse")


def test_shares_of_gpt_are_read_by_any_name() -> None:
    value = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "What is 2 + 2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
        {"from": "observation", "value": "4"},
    ]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    assert parse_messages(value) == (
        Message("system", "Be brief."),
        Message("user", "What is 2 + 2?"),
        Message("assistant", "", {"tool_calls": [call]}),
        Message("tool", "4"),
    )


@pytest.mark.parametrize("arguments", ['{"a": 2}', {"a": 2}])
def test_tool_calls_keep_their_ids_and_have_arguments_as_objects(arguments: Any) -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}]
    value = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": ""},
    ]
    _, called, result = parse_messages(value)
    function = {"name": "add", "arguments": {"a": 2}}
    assert called == Message(
        "assistant", "", {"tool_calls": [{"id": "c1", "type": "function", "function": function}]}
    )
    assert result == Message("tool", "", {"tool_call_id": "c1", "name": "add"})


@pytest.mark.parametrize("arguments", [None, ""])
def test_a_call_without_arguments_has_none(arguments: Any) -> None:
    function = {"name": "now", "arguments": arguments}
    (_, called) = parse_messages([USER, {"role": "assistant", "tool_calls": [{"function": function}]}])
    assert called.extra == {
        "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": {}}}]
    }


def test_an_answer_at_the_end_is_dropped_or_refused() -> None:
    value = [USER, ASSISTANT, USER, ASSISTANT]
    assert drop_final_answers(value) == (value[:3], True)
    check_question(parse_messages(value[:3]), "regenerate")
    check_question(parse_messages(value), "continue")
    with pytest.raises(RowFault, match="the last message is the assistant's"):
        check_question(parse_messages(value), "refuse")


@pytest.mark.parametrize("final", ["regenerate", "continue", "refuse"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([ASSISTANT, ASSISTANT], "every message is the assistant's"),
        ([SYSTEM], "the last one is from system"),
        ([SYSTEM, ASSISTANT], "the last one is from system"),
    ],
)
def test_a_conversation_without_a_question_is_refused(
    value: list[dict[str, Any]], message: str, final: Any
) -> None:
    with pytest.raises(RowFault, match=f"there is no message to answer: {message}"):
        check_question(parse_messages(value), final)


def test_the_questions_of_a_conversation_are_its_turns() -> None:
    messages = parse_messages([SYSTEM, USER, ASSISTANT, USER, ASSISTANT])
    assert pick_questions(messages) == (messages[0], messages[1], messages[3])
    with pytest.raises(RowFault, match="turn by turn cannot have a tool message"):
        pick_questions(parse_messages([USER, {"role": "tool", "content": "4"}, USER]))
    with pytest.raises(RowFault, match="has no message from the user"):
        pick_questions(parse_messages([SYSTEM, ASSISTANT]))


def test_text_parts_are_joined_by_line_ends() -> None:
    parts = [{"type": "text", "text": "Look:"}, {"type": "text", "value": "Why?"}]
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
        ([{"content": "a"}], "has the role null; it must be one of system, developer, user"),
        ([{"role": "bot", "content": "a"}, USER], "has the role 'bot'"),
        ([{"role": ["user"], "content": "a"}], "has the role an array"),
        ([{"from": "parrot", "value": "a"}], "message 1 is from 'parrot'; it must be one of system, human"),
        ([{"from": "human"}], "the value of message 1 must be a string, not null"),
        ([{"from": "function_call", "value": "add"}], "the function call of message 1 is a string, and as"),
        ([{"role": "user"}], "must be a string, not null"),
        ([{"role": "user", "content": 1}], "must be a string, not a number"),
        ([{"role": "user", "content": " \n"}], "is blank"),
        ([{"role": "user", "content": []}], "is blank"),
        ([{"role": "user", "content": [5]}], "has a part that is a number; only text is supported"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of type 'image_url'; only text"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "a part of type 'text'"),
        ([{**ASSISTANT, "tool_calls": [{}]}, USER], "a tool call of message 1 has no function with a name"),
        ([{**ASSISTANT, "tool_calls": "add"}, USER], "the tool_calls of message 1 must be a list of objects"),
        (
            [{**ASSISTANT, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, USER],
            "the arguments of a tool call of message 1 must be an object, not an array",
        ),
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
