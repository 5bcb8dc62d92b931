"""vLLM's reasoning parsers by name, known before an engine loads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import NEEDS_VLLM, Command, run_probe, write_jsonl

from synthia_batch.core.types import Finished, Message, Row, RowSampling, Sample
from synthia_batch.errors import UsageError
from synthia_batch.models.prompts.formats import ChatFormat, PlainChatFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer
from synthia_batch.scheduler.conversation import Context
from synthia_batch.scheduler.multi_turn import MultiTurnSession
from synthia_batch.workers.vllm.settings import check_settings, list_reasoning_parsers

OPENING = "{% for m in messages %}{{ m.content }}{% endfor %}<think>{# and </think> ends it #}"


@NEEDS_VLLM
def test_the_names_are_vllms_own() -> None:
    names = list_reasoning_parsers()
    assert {"deepseek_r1", "qwen3", "granite", "openai_gptoss"} <= set(names)
    check_settings({"reasoning_parser": "deepseek_r1"}, "cpu", "strict")


@NEEDS_VLLM
@pytest.mark.parametrize(
    ("name", "words"),
    [("deepseek-r1", "did you mean deepseek_r1?"), ("parser of mine", "it has .*deepseek_r1, ")],
)
def test_a_name_that_is_none_is_refused_with_what_was_meant(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"vLLM has no parser '{name}'; {words}"):
        check_settings({"reasoning_parser": name}, "cpu", "fast")


@NEEDS_VLLM
def test_a_parser_of_a_plugin_is_the_plugins_to_know() -> None:
    check_settings({"reasoning_parser": "mine", "reasoning_parser_plugin": "/mine.py"}, "cpu", "fast")


@NEEDS_VLLM
def test_a_slip_ends_before_anything_loads_and_the_parser_is_identity(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    job = ("plan", source, "-m", "demo", "--json")
    slip = synthia(*job, "--reasoning-parser", "qwen33")
    assert slip.returncode == 2
    assert "vLLM has no parser 'qwen33'; did you mean qwen3?" in slip.stderr
    alone = synthia(*job, "--set", "sampling.thinking_token_budget=9")
    assert alone.returncode == 2
    assert "add --reasoning-parser NAME" in alone.stderr
    plans = [
        json.loads(synthia(*job, *flags).stdout)["fingerprint"]
        for flags in ((), ("--reasoning-parser", "qwen3"), ("--set", "engine.reasoning_parser=qwen3"))
    ]
    assert plans[0] != plans[1] == plans[2]


PARSE = """
from synthia_batch.core.types import Finished
from synthia_batch.workers.vllm.outputs import ReasoningSplitter

class Parser:
    def __init__(self, tokenizer, **kwargs):
        self.kwargs = kwargs
    def extract_reasoning(self, text, request):
        return None, str(self.kwargs)

made = Finished(
    ordinal=0, response="x", reasoning=None, finish_reason="stop", prompt_tokens=1, completion_tokens=1
)
for kwargs in (None, {}, {"enable_thinking": False}):
    print(ReasoningSplitter(Parser, None).split(made, kwargs).response)
"""


@NEEDS_VLLM
def test_a_parser_gets_the_arguments_of_the_chat_template() -> None:
    assert run_probe(PARSE) == ["{}", "{}", "{'chat_template_kwargs': {'enable_thinking': False}}"]


def test_a_request_has_the_arguments_of_job_and_row() -> None:
    own = RowSampling(template_kwargs={"deep": False})
    context = Context(max_model_len=1000, max_tokens=20, on_overflow="fail")
    renderer = Renderer(PlainChatFormat(), ByteTokenizer())
    session = MultiTurnSession(renderer, context, template_kwargs={"deep": True, "note": "x"})
    for sampling, expected in ((None, {"deep": True, "note": "x"}), (own, {"deep": False, "note": "x"})):
        row = Row(
            index=0, id="a", messages=(Message("user", "?"),), system=None, kept={}, line=1, sampling=sampling
        )
        sample = Sample(ordinal=0, row=row, system="none", index=0, seed=1, messages=row.messages)
        assert session.begin(sample).template_kwargs == expected
    assert (
        MultiTurnSession(renderer, context)
        .begin(replace(sample, row=replace(row, sampling=None)))
        .template_kwargs
        is None
    )


def test_what_the_engine_has_split_is_not_split_again() -> None:
    made = Finished(
        ordinal=0, response="said", reasoning="thought", finish_reason="stop", prompt_tokens=1,
        completion_tokens=2,
    )  # fmt: skip
    context = Context(max_model_len=1000, max_tokens=20, on_overflow="fail")
    renderer = Renderer(ChatFormat(OPENING, {}), ByteTokenizer())
    assert renderer.thinks
    by_engine = MultiTurnSession(renderer, context, reads_reasoning=False)
    assert by_engine.advance(made).record == made
    by_template = MultiTurnSession(renderer, context).advance(made).record
    assert isinstance(by_template, Finished)
    assert by_template.response == "", "the template opens a reasoning that never ends"
