"""What requests of an OpenAI batch want beside a text: several answers, log-probabilities."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import call
from openai.types.chat import ChatCompletion

from synthia_batch.core.types import Finished, RowSampling
from synthia_batch.scheduler.answer_check import read_required_call

PLAN = ("--engine", "scripted", "--pool", "local")
ENGINE = (*PLAN, "-q")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def request(number: int = 1, **body: Any) -> dict[str, Any]:
    body = {"model": "org/m", "messages": [{"role": "user", "content": "Why?"}], **body}
    url = "/v1/chat/completions"
    return {"custom_id": f"r-{number}", "method": "POST", "url": url, "body": body}


def export(capsys: Any) -> list[Any]:
    answer = call(capsys, "export", "out", "--to", "openai-batch")
    assert answer.code == 0, answer.err
    lines = [json.loads(line) for line in answer.out.splitlines()]
    for line in lines:
        if line["response"]:
            ChatCompletion.model_validate(line["response"]["body"])
    return lines


def test_requests_with_n_get_as_many_choices_in_one_line(capsys: Any) -> None:
    write_jsonl(Path("b.jsonl"), [request(1, n=3), request(2, n=3)])
    answer = call(capsys, "run", "b.jsonl", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    lines = export(capsys)
    assert [line["custom_id"] for line in lines] == ["r-1", "r-2"]
    assert [len(line["response"]["body"]["choices"]) for line in lines] == [3, 3]
    texts = pq.read_table("out/data")["response"].to_pylist()
    choices = [choice for line in lines for choice in line["response"]["body"]["choices"]]
    assert [choice["message"]["content"] for choice in choices] == texts
    assert [choice["index"] for choice in choices] == [0, 1, 2, 0, 1, 2]


def test_plan_says_that_the_number_of_answers_is_the_requests(capsys: Any) -> None:
    write_jsonl(Path("b.jsonl"), [request(1, n=3)])
    plans = [
        json.loads(call(capsys, "plan", "b.jsonl", "--json", *flags, *PLAN).out)
        for flags in ((), ("-n", "3"))
    ]
    assert plans[0]["settings"]["num_samples"] == {"value": 3, "origin": "the requests"}
    assert plans[0]["samples"] == 3
    assert plans[0]["fingerprint"] == plans[1]["fingerprint"], "the same number set explicitly"


def test_another_n_than_the_first_is_refused_with_both_lines(capsys: Any) -> None:
    write_jsonl(Path("b.jsonl"), [request(1, n=2), request(2, n=3), request(3), request(4, n=2)])
    refused = call(capsys, "run", "b.jsonl", *ENGINE)
    assert refused.code == 2
    why = "put the requests with each n into a file of their own (the first request: b.jsonl:1)"
    for line, wanted in ((2, 3), (3, 1)):
        assert f"b.jsonl:{line}: expected n: 2 as in the first request, got n: {wanted}: " in refused.err
    assert refused.err.count(why) == 2
    failed = call(capsys, "run", "b.jsonl", "-o", "out", "--on-bad-row", "fail", *ENGINE)
    assert failed.code == 0, failed.err
    assert [line["error"] and line["error"]["code"] for line in export(capsys)] == [
        None, None, "bad_row", "bad_row",
    ]  # fmt: skip


@pytest.mark.parametrize("body", [{"n": 0}, {"n": True}, {"n": "2"}, {"n": 1.5}])
def test_an_n_that_is_no_number_of_answers_is_refused(capsys: Any, body: dict[str, Any]) -> None:
    write_jsonl(Path("b.jsonl"), [request(1, **body)])
    refused = call(capsys, "run", "b.jsonl", *ENGINE)
    assert refused.code == 2
    assert "b.jsonl:1: the body's n must be a whole number from 1" in refused.err


def test_another_number_of_samples_than_the_requests_set_is_refused(capsys: Any) -> None:
    write_jsonl(Path("b.jsonl"), [request(1, n=2)])
    refused = call(capsys, "run", "b.jsonl", "-n", "3", *ENGINE)
    assert refused.code == 2
    assert "-n/--num-samples 3: the requests set n: 2; leave it out" in refused.err
    write_jsonl(Path("b.jsonl"), [request(1), request(2, n=1)])
    assert call(capsys, "run", "b.jsonl", "-n", "3", *ENGINE).code == 0, "n of one is the API's default"


def test_each_request_has_the_log_probabilities_that_it_wants(capsys: Any) -> None:
    wanted: list[dict[str, Any]] = [
        {"logprobs": True, "top_logprobs": 2}, {}, {"logprobs": True}, {"logprobs": False, "top_logprobs": 0},
    ]  # fmt: skip
    write_jsonl(Path("b.jsonl"), [request(number, **body) for number, body in enumerate(wanted)])
    answer = call(capsys, "run", "b.jsonl", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    found = [line["response"]["body"]["choices"][0]["logprobs"] for line in export(capsys)]
    counts = [
        None if entry is None else {len(place["top_logprobs"]) for place in entry["content"]}
        for entry in found
    ]
    assert counts == [{2}, None, {0}, None]
    assert call(capsys, "verify", "out", "-q").code == 0
    table = pq.read_table("out/data")
    bare = [request(number) for number, _ in enumerate(wanted)]
    write_jsonl(Path("bare.jsonl"), bare)
    assert call(capsys, "run", "bare.jsonl", "-o", "bare", *ENGINE).code == 0
    assert table["response"].equals(pq.read_table("bare/data")["response"]), "they change no text"


def test_log_probabilities_survive_a_retry(capsys: Any) -> None:
    write_jsonl(Path("b.jsonl"), [request(1, logprobs=True, top_logprobs=1), request(2), request(3)])
    fails = ("--set", "engine.fail_every=2", "--set", "engine.fail_while_missing=fixed")
    assert call(capsys, "run", "b.jsonl", "-o", "out", *fails, *ENGINE).code == 0
    before = pq.read_table("out/data")["logprobs"].to_pylist()
    Path("fixed").touch()
    assert call(capsys, "retry", "out", "-q").code == 0
    after = pq.read_table("out/data")["logprobs"].to_pylist()
    assert len(after) == 3
    assert [entry for entry in after if entry is None] == [None, None]
    assert [entry for entry in before if entry] == [] or before[0] == after[0]


@pytest.mark.parametrize(
    ("bodies", "message"),
    [
        ([{"top_logprobs": 2}], "b.jsonl:1: column 'body': the body sets top_logprobs, which needs logprobs"),
        ([{"logprobs": 5}], "the body's logprobs must be true or false, not a number"),
        ([{"logprobs": True, "top_logprobs": 21}], "top_logprobs must be a number from 0 to 20"),
        ([{"logprobs": True, "top_logprobs": True}], "top_logprobs must be a number from 0 to 20"),
    ],
)
def test_log_probabilities_that_cannot_be_honoured(
    capsys: Any, bodies: list[dict[str, Any]], message: str
) -> None:
    write_jsonl(Path("b.jsonl"), [request(number, **body) for number, body in enumerate(bodies)])
    refused = call(capsys, "run", "b.jsonl", *ENGINE)
    assert refused.code == 2
    assert message in refused.err


def test_log_probabilities_of_a_late_request_alone_are_refused(capsys: Any) -> None:
    rows = [request(number) for number in range(1001)] + [request(1001, logprobs=True)]
    write_jsonl(Path("b.jsonl"), rows)
    refused = call(capsys, "plan", "b.jsonl", *PLAN)
    assert refused.code == 2
    assert "b.jsonl:1002: column 'body': the body sets logprobs, which none of the first 1,000" in refused.err
    assert "put one such request first" in refused.err
    write_jsonl(Path("b.jsonl"), [rows[-1], *rows[:-1]])
    assert call(capsys, "plan", "b.jsonl", *PLAN).code == 0


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


NAMED = {"type": "function", "function": {"name": "add"}}


def test_a_call_that_a_request_requires_comes_back_as_a_tool_call(capsys: Any) -> None:
    rows = [request(1, tools=[ADD], tool_choice=NAMED), request(2, tools=[ADD]), request(3)]
    write_jsonl(Path("b.jsonl"), rows)
    answer = call(capsys, "run", "b.jsonl", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    table = pq.read_table("out/data").to_pylist()
    arguments = json.loads(table[0]["response"])
    assert list(arguments) == ["a"]
    first, *others = [line["response"]["body"]["choices"][0] for line in export(capsys)]
    assert first["finish_reason"] == "tool_calls"
    assert first["message"]["content"] is None
    (made,) = first["message"]["tool_calls"]
    assert (made["id"], made["function"]["name"]) == ("call_0_0_0", "add")
    assert json.loads(made["function"]["arguments"]) == arguments
    assert table[0]["messages"][-1]["content"] == table[0]["response"], "the text stays as generated"
    last = json.loads(table[0]["messages_json"])[-1]
    assert last["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": arguments}}]
    assert [other["finish_reason"] for other in others] == ["stop", "stop"]
    assert all("tool_calls" not in other["message"] for other in others)
    assert call(capsys, "verify", "out", "-q").code == 0


def test_calls_of_any_tool_are_read_from_the_list_that_they_are() -> None:
    calls = [{"name": "add", "parameters": {"a": 1}}, {"name": "now", "parameters": {}}]
    finished = Finished(
        ordinal=0, response=json.dumps(calls), reasoning=None, finish_reason="stop", prompt_tokens=1,
        completion_tokens=1,
    )  # fmt: skip
    outcome = read_required_call(RowSampling(tool_choice="required"), finished)
    assert isinstance(outcome, Finished)
    message = outcome.called
    assert message is not None
    functions = [each["function"] for each in (message.extra or {})["tool_calls"]]
    assert functions == [{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]
    assert message.content == ""


def test_required_calls_survive_a_retry_of_other_rows(capsys: Any) -> None:
    rows = [request(number, tools=[ADD], tool_choice=NAMED) for number in range(3)]
    write_jsonl(Path("b.jsonl"), rows)
    fails = ("--set", "engine.fail_every=2", "--set", "engine.fail_while_missing=fixed")
    assert call(capsys, "run", "b.jsonl", "-o", "out", *fails, *ENGINE).code == 0
    Path("fixed").touch()
    assert call(capsys, "retry", "out", "-q").code == 0
    assert call(capsys, "run", "b.jsonl", "-o", "whole", *ENGINE).code == 0
    again = pq.read_table("out/data")["messages_json"]
    assert again.equals(pq.read_table("whole/data")["messages_json"])
    assert again.to_pylist()[1].count("tool_calls") == 1


def test_a_required_call_of_a_late_request_alone_is_refused(capsys: Any) -> None:
    late = request(1001, tools=[ADD], tool_choice="required")
    write_jsonl(Path("b.jsonl"), [*(request(number) for number in range(1001)), late])
    refused = call(capsys, "plan", "b.jsonl", *PLAN)
    assert refused.code == 2
    assert "b.jsonl:1002: column 'body': the body sets tool_choice, and none of the first" in refused.err
    flag = ("--set", "input.message_fields=true")
    assert call(capsys, "plan", "b.jsonl", *flag, *PLAN).code == 0


def test_calls_in_the_history_of_a_request_need_no_flag(capsys: Any) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **ADD}]}
    called["tool_calls"][0]["function"] = {"name": "add", "arguments": '{"a": 1}'}
    result = {"role": "tool", "tool_call_id": "1", "content": "2"}
    write_jsonl(Path("b.jsonl"), [request(messages=[{"role": "user", "content": "?"}, called, result])])
    answer = call(capsys, "run", "b.jsonl", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    messages = json.loads(pq.read_table("out/data")["messages_json"].to_pylist()[0])
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
