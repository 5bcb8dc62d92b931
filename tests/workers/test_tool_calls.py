"""vLLM's parsers of tool calls: named before an engine loads, and applied to answers of rows with tools."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import NEEDS_VLLM, Command, run_probe, write_jsonl
from test_engine_environment import SPEC

from synthia_batch.core.types import Finished, Message, Row, RowSampling, Sample
from synthia_batch.errors import UsageError
from synthia_batch.models.prompts.formats import PlainChatFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer
from synthia_batch.scheduler.conversation import Context
from synthia_batch.scheduler.multi_turn import MultiTurnSession
from synthia_batch.storage.parts.schema import list_optional
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.vllm.arguments import engine_arguments
from synthia_batch.workers.vllm.settings import check_settings, list_tool_parsers

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@NEEDS_VLLM
def test_the_names_are_vllms_own() -> None:
    assert {"hermes", "qwen3_coder", "llama3_json", "mistral"} <= set(list_tool_parsers())
    check_settings({"tool_call_parser": "hermes"}, "cpu", "strict")
    check_settings({"tool_call_parser": "mine", "tool_parser_plugin": "/mine.py"}, "cpu", "strict")
    with pytest.raises(
        UsageError, match=r"tool_call_parser: vLLM has no parser 'hermess'; did you mean hermes"
    ):
        check_settings({"tool_call_parser": "hermess"}, "cpu", "strict")


@NEEDS_VLLM
def test_the_parser_is_identity(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    job = ("plan", source, "-m", "demo", "--json")
    plans = [
        json.loads(synthia(*job, *flags).stdout)["fingerprint"]
        for flags in ((), ("--tool-call-parser", "hermes"), ("--set", "engine.tool_call_parser=hermes"))
    ]
    assert plans[0] != plans[1] == plans[2]


def test_the_engine_gets_no_setting_of_the_server() -> None:
    spec = dataclasses.replace(SPEC, settings={"tool_call_parser": "hermes", "max_num_seqs": 4})
    arguments = engine_arguments(spec, Placement())
    assert "tool_call_parser" not in arguments
    assert arguments["max_num_seqs"] == 4


def test_the_output_has_a_column_for_calls() -> None:
    assert list_optional({"engine": {"kind": "vllm", "tool_call_parser": "hermes"}}) == ("messages_json",)


PARSE = """
import json
from types import SimpleNamespace
from synthia_batch.core.types import Finished, Request
from synthia_batch.workers.vllm.tool_calls import ToolCallReader
from vllm.tool_parsers import ToolParserManager

add = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
reader = ToolCallReader(ToolParserManager.get_tool_parser("hermes"), SimpleNamespace(get_vocab=dict))
request = Request(ordinal=0, token_ids=[1], seed=1, tools=(add,))
print(reader.skips_special_tokens(request, skips=True))

def read(text):
    made = Finished(
        ordinal=0, response=text, reasoning=None, finish_reason="stop", prompt_tokens=1, completion_tokens=1
    )
    answer = reader.read(made, request)
    assert answer.response == text
    print(json.dumps(answer.called.to_dict() if answer.called else None))

read('I add. <tool_call>{"name": "add", "arguments": {"a": [1, "x"]}}</tool_call>')
one = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
read(one + one.replace("{}", '{"b": 2}').removesuffix("</tool_call>"))
read("Two.")
read("<tool_call>no</tool_call>")

class Broken:
    def __init__(self, tokenizer, tools): pass
    def extract_tool_calls(self, text, request): raise KeyError("name")

made = Finished(
    ordinal=3, response="x", reasoning=None, finish_reason="stop", prompt_tokens=1, completion_tokens=1
)
print(ToolCallReader(Broken, None).read(made, request).code)
"""


@NEEDS_VLLM
def test_hermes_calls_become_a_message_and_the_text_stays() -> None:
    skips, called, twice, plain, odd, code = run_probe(PARSE)
    assert skips == "False", "the marks of calls may be special tokens"
    message = json.loads(called)
    assert message["content"] == "I add."
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "add", "arguments": {"a": [1, "x"]}}}
    ]
    assert [call["function"]["arguments"] for call in json.loads(twice)["tool_calls"]] == [{}, {"b": 2}]
    assert (plain, odd) == ("null", "null")
    assert code == "tool_calls_not_parsed"


def make_sample(sampling: RowSampling | None) -> Sample:
    row = Row(
        index=0, id="a", messages=(Message("user", "?"),), system=None, kept={}, line=1, sampling=sampling,
        tools=(ADD,),
    )  # fmt: skip
    return Sample(ordinal=0, row=row, system="none", index=0, seed=1, messages=row.messages)


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        (None, 1),
        (RowSampling(), 1),
        (RowSampling(tool_choice="none"), 0),
        (RowSampling(tool_choice="required"), 0),
    ],
)
def test_tools_go_to_the_engine_where_it_reads_calls(sampling: RowSampling | None, sent: int) -> None:
    context = Context(max_model_len=1000, max_tokens=20, on_overflow="fail")
    renderer = Renderer(PlainChatFormat(), ByteTokenizer())
    assert MultiTurnSession(renderer, context).begin(make_sample(sampling)).tools == ()
    session = MultiTurnSession(renderer, context, sends_tools=True)
    assert len(session.begin(make_sample(sampling)).tools) == sent


def test_what_the_engine_has_read_stays_in_the_sample() -> None:
    calls: list[Any] = [{"type": "function", "function": {"name": "add", "arguments": {}}}]
    made = Finished(
        ordinal=0, response="<tool_call>", reasoning=None, finish_reason="stop", prompt_tokens=1,
        completion_tokens=2, called=Message("assistant", "", {"tool_calls": calls}),
    )  # fmt: skip
    context = Context(max_model_len=1000, max_tokens=20, on_overflow="fail")
    session = MultiTurnSession(Renderer(PlainChatFormat(), ByteTokenizer()), context, sends_tools=True)
    session.begin(make_sample(None))
    assert session.advance(made).record == made
