"""OpenAI batch files, ShareGPT, Alpaca and prompt templates: what a row becomes, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Command, share_demo_model, write_jsonl
from inside import call

from synthia_batch.core.types import Message
from synthia_batch.inputs import Selection, open_source
from synthia_batch.inputs.records.faults import RowFault
from synthia_batch.inputs.records.openai_batch import read_sampling
from synthia_batch.inputs.records.row_options import parse_sampling
from synthia_batch.inputs.records.template import PromptTemplate

EXAMPLE = ROOT / "tests" / "inputs" / "openai_batch.jsonl"
"""Line for line of the form of vLLM's examples/offline_inference/openai/openai_example_batch.jsonl."""
ENGINE = ("--engine", "scripted", "--pool", "local", "-q")
TALK = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Why?"},
    {"from": "gpt", "value": "Because."},
    {"from": "human", "value": "And then?"},
    {"from": "gpt", "value": "Nothing."},
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_data(directory: str | Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(directory) / "data").to_pylist()
    return rows


def list_messages(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row["messages"]]


def request(number: int = 1, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Why?"}]
    body = {"model": "org/m", "messages": messages, **body}
    return {"custom_id": f"r-{number}", "method": "POST", "url": url, "body": body}


def test_an_openai_batch_runs_unchanged_and_comes_back_as_one(synthia: Command, tmp_path: Path) -> None:
    from openai.types.chat import ChatCompletion

    shutil.copy(EXAMPLE, tmp_path / "batch.jsonl")
    done = synthia("run", "batch.jsonl", "-o", "out", *ENGINE)
    assert done.returncode == 0, done.stderr
    assert "its requests name the model 'somebody/another-model'; 'scripted' answers" in done.stderr
    rows = read_data(tmp_path / "out")
    assert [(row["id"], row["system"]) for row in rows] == [
        ("prime-plain", "row"),
        ("prime-asked-back", "row"),
    ]
    assert list_messages(rows[1])[0] == ("system", "You answer with a question.")
    exported = synthia("export", "out", "--to", "openai-batch")
    lines = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [line["custom_id"] for line in lines] == ["prime-plain", "prime-asked-back"]
    for line in lines:
        ChatCompletion.model_validate(line["response"]["body"], strict=True)


def test_a_request_says_its_own_sampling(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "b.jsonl",
        [
            request(1, max_completion_tokens=1),
            request(2, max_tokens=3, seed=7),
            request(3, n=1, stream=False),
        ],
    )
    done = synthia("run", "b.jsonl", "-o", "out", "--max-tokens", "2", *ENGINE)
    assert done.returncode == 0, done.stderr
    rows = read_data(tmp_path / "out")
    assert [row["completion_tokens"] for row in rows] <= [1, 3, 2]
    assert rows[0]["completion_tokens"] == 1
    assert rows[1]["seed"] == 7


NEUTRAL = {
    "use_beam_search": False, "add_generation_prompt": True, "echo": False, "priority": 0, "top_k": -1,
    "n": 1, "logprobs": False, "length_penalty": 1.0, "chat_template_kwargs": {}, "tools": [],
}  # fmt: skip
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}}}


def test_defaults_in_a_body_change_nothing() -> None:
    settings = read_sampling(request(**NEUTRAL)["body"])
    assert settings == {"top_k": -1}
    assert parse_sampling(settings).values == {"top_k": 0}
    with pytest.raises(RowFault, match="sets echo"):
        read_sampling({"echo": True})


@pytest.mark.parametrize(
    ("choice", "structure"),
    [
        ("none", None),
        ("auto", None),
        ({"type": "function", "function": {"name": "add"}}, ADD["function"]["parameters"]),
        (
            "required",
            {
                "type": "array",
                "minItems": 1,
                "items": {
                    "anyOf": [
                        {
                            "type": "object",
                            "properties": {
                                "name": {"const": "add"},
                                "parameters": ADD["function"]["parameters"],
                            },
                            "required": ["name", "parameters"],
                        }
                    ]
                },
            },
        ),
    ],
)
def test_a_bodys_tool_choice_is_a_structure_of_the_answer(choice: Any, structure: Any) -> None:
    found = read_sampling(request(tools=[ADD], tool_choice=choice)["body"])
    assert found == ({} if structure is None else {"structured": {"json_schema": structure}})


def test_a_bodys_tools_are_in_the_prompt(capsys: Any) -> None:
    write_jsonl(Path("b.jsonl"), [request(1, tools=[ADD]), request(2)])
    shown = call(capsys, "preview", "b.jsonl", "--full", *ENGINE)
    assert shown.code == 0, shown.err
    assert shown.out.count("<tools>") == 1


def test_a_bodys_tools_are_read_under_any_name(capsys: Any) -> None:
    renamed = {"custom_id": "r-1", "request": request(tools=[ADD])["body"], "body": None}
    write_jsonl(Path("b.jsonl"), [renamed])
    flags = ("--input-format", "openai-batch", "--messages-column", "request")
    shown = call(capsys, "preview", "b.jsonl", "--full", *flags, *ENGINE)
    assert shown.code == 0, shown.err
    assert shown.out.count("<tools>") == 1


def test_a_preview_of_few_rows_reads_them_as_the_run_does(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"text": "a"}] * 3 + [{"text": "a", "prompt": "b"}])
    for command in (("preview", "-n", "2"), ("run",)):
        refused = call(capsys, *command, "t.jsonl", *ENGINE)
        assert refused.code == 2, refused
        assert "t.jsonl:1: there is no 'prompt' in this row" in refused.err


def test_a_batch_comes_back_with_one_line_per_request(capsys: Any) -> None:
    write_jsonl(Path("b.jsonl"), [request(number) for number in range(1, 5)])
    fails = ("--set", "engine.fail_every=3", "-n", "2")
    assert call(capsys, "run", "b.jsonl", "-o", "out", *fails, *ENGINE).code == 0
    failed = {row["id"] for row in pq.read_table("out/failed").to_pylist()}
    lines = [
        json.loads(line) for line in call(capsys, "export", "out", "--to", "openai-batch").out.splitlines()
    ]
    assert sorted(line["custom_id"] for line in lines) == ["r-1", "r-2", "r-3", "r-4"]
    assert {line["custom_id"] for line in lines if line["error"] is not None} == failed
    assert any(line["error"] and line["response"] for line in lines), "a request with one of two samples"


def test_every_key_of_a_body_is_honoured_or_refused() -> None:
    body = request(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.1, max_tokens=5, stop=["."], presence_penalty=1,
        frequency_penalty=1, logit_bias={"5": 1}, seed=3, user="me", metadata={"a": "b"}, logprobs=False,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    )["body"]  # fmt: skip
    assert read_sampling(body) == {
        "temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "max_tokens": 5, "stop": ["."],
        "presence_penalty": 1, "frequency_penalty": 1, "logit_bias": {"5": 1}, "seed": 3,
        "structured": {"json_schema": {"type": "object"}},
    }  # fmt: skip
    assert read_sampling({"max_tokens": 9, "max_completion_tokens": 4}) == {"max_tokens": 4}
    assert read_sampling({"max_completion_tokens": 4, "max_tokens": 9}) == {"max_tokens": 4}
    assert read_sampling({"response_format": {"type": "json_object"}}) == {
        "structured": {"json_schema": {"type": "object"}}
    }
    assert read_sampling({"structured_outputs": {"choice": ["a"]}}) == {"structured": {"choice": ["a"]}}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [request(best_of=2, magic=1)],
            "b.jsonl:1: column 'body': the body sets best_of, which is not supported per request; omit it, "
            "or set it for the whole job; the body sets magic",
        ),
        ([request(), request(2, tools=[{}])], "b.jsonl:2: column 'body': tool 1 has the type None"),
        ([request(tool_choice="required")], "tool_choice must be none, auto, required or the name of one"),
        ([request(chat_template="{{ 1 }}")], "the body sets chat_template"),
        ([request(temperature=9)], "b.jsonl:1: column 'body': temperature: Input should be less than"),
        (
            [request(), request(2, model="org/other")],
            "b.jsonl:2: expected the model of the first request",
        ),
        ([request(url="/v1/embeddings")], "b.jsonl:1: the url must be /v1/chat/completions"),
        ([request(messages=[])], "b.jsonl:1: the body's messages: messages is an empty list"),
        ([request(), request()], "b.jsonl:2: the id 'r-1' was used before, at b.jsonl:1"),
        ([{"custom_id": "a", "body": "text"}], "b.jsonl:1: column 'body' must be an object, not a string"),
        ([{"custom_id": "a", "body": {}}], "b.jsonl:1: the body has no messages"),
    ],
)
def test_what_a_request_is_refused_for(capsys: Any, records: list[dict[str, Any]], message: str) -> None:
    write_jsonl(Path("b.jsonl"), records)
    answer = call(capsys, "run", "b.jsonl", *ENGINE)
    assert answer.code == 2, answer
    assert message in answer.err, answer.err


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_sharegpt_is_found_and_its_last_answer_made_again(capsys: Any, suffix: str) -> None:
    write_jsonl(
        Path("t.jsonl"), [{"id": "a", "conversations": TALK}, {"id": "b", "conversations": TALK[1:2]}]
    )
    pq.write_table(
        pa.Table.from_pylist([json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]),
        "t.parquet",
    )
    answer = call(capsys, "run", f"t.{suffix}", "-o", "out", "--id-column", "id", *ENGINE)
    assert answer.code == 0, answer.err
    assert "read as ShareGPT" in answer.err
    assert "1 of 2 conversations end with an answer, which is regenerated" in answer.err
    first, second = read_data("out")
    assert list_messages(first)[:-1] == [
        ("system", "Be brief."), ("user", "Why?"), ("assistant", "Because."), ("user", "And then?"),
    ]  # fmt: skip
    assert (first["system"], second["system"]) == ("row", "none")
    assert list_messages(second)[:-1] == [("user", "Why?")]


def test_sharegpt_as_turns_has_every_answer_made_again(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"conversations": TALK}])
    flags = ("--input-format", "sharegpt", "--turns-column", "conversations")
    assert call(capsys, "run", "t.jsonl", "-o", "out", *flags, *ENGINE).code == 0
    (row,) = read_data("out")
    assert [role for role, _ in list_messages(row)] == ["system", "user", "assistant", "user", "assistant"]
    assert row["system"] == "row"
    assert list_messages(row)[2][1] != "Because."


def test_a_turns_column_of_messages_is_played(capsys: Any) -> None:
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    talk = [{"role": roles[one["from"]], "content": one["value"]} for one in TALK]
    write_jsonl(Path("t.jsonl"), [{"messages": talk}])
    pq.write_table(pa.Table.from_pylist([{"messages": talk}]), "t.parquet")
    found = []
    for name in ("t.jsonl", "t.parquet"):
        flags = ("--turns-column", "messages", "-o", name.replace(".", "-"), *ENGINE)
        answer = call(capsys, "run", name, *flags)
        assert answer.code == 0, answer.err
        (row,) = read_data(name.replace(".", "-"))
        found.append(list_messages(row))
        assert row["system"] == "row"
    assert found[0] == found[1]
    assert [role for role, _ in found[0]] == ["system", "user", "assistant", "user", "assistant"]
    assert found[0][2][1] != "Because."


RED = {"instruction": "Name a colour", "output": "red"}
SEA = {"instruction": "Translate to German:", "input": "the sea", "output": "das Meer"}


@pytest.mark.parametrize("files", [[[RED, SEA]], [[SEA, RED]], [[RED], [SEA]], [[SEA], [RED]]])
def test_the_shape_does_not_depend_on_which_row_comes_first(
    capsys: Any, files: list[list[dict[str, Any]]]
) -> None:
    for number, rows in enumerate(files):
        write_jsonl(Path(f"{number}.jsonl"), rows)
    answer = call(capsys, "run", *(f"{number}.jsonl" for number in range(len(files))), "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    asked = {list_messages(row)[-2][1] for row in read_data("out")}
    assert asked == {"Name a colour", "Translate to German:\nthe sea"}


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([RED] * 1001 + [SEA], "'input'"),
        ([{"text": "a"}] * 1001 + [{"text": "a", "prompt": "b"}], "'prompt'"),
        ([{"prompt": "a"}] * 1001 + [{"messages": []}], "'messages'"),
    ],
)
def test_a_late_row_of_another_shape_is_refused_with_both_lines(
    capsys: Any, rows: list[dict[str, Any]], name: str
) -> None:
    write_jsonl(Path("t.jsonl"), rows)
    answer = call(capsys, "run", "t.jsonl", *ENGINE)
    assert answer.code == 2, answer
    assert f"t.jsonl:1002: has a column {name}, but the input is read by" in answer.err
    assert "from t.jsonl:1 on" in answer.err
    assert "--input-format" in answer.err


def test_a_named_format_reads_columns_of_any_row(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [RED] * 1001 + [SEA])
    answer = call(capsys, "run", "t.jsonl", "-o", "out", "--input-format", "alpaca", *ENGINE)
    assert answer.code == 0, answer.err
    asked = [list_messages(row)[-2][1] for row in read_data("out")]
    assert asked[-1] == "Translate to German:\nthe sea"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_alpacas_history_and_system_and_dollys_context_are_asked(capsys: Any, suffix: str) -> None:
    rows = [
        {"instruction": "And?", "input": "", "history": [["Why?", "Because."]], "system": "Be brief."},
        {"instruction": "Who?", "context": "A fox.", "history": [], "system": None},
    ]
    write_jsonl(Path("a.jsonl"), rows)
    pq.write_table(pa.Table.from_pylist([{"context": None, **row} for row in rows]), "a.parquet")
    answer = call(capsys, "run", f"a.{suffix}", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    assert "system message: each row's own; for rows without one none" in answer.err
    first, second = read_data("out")
    assert list_messages(first)[:-1] == [
        ("system", "Be brief."), ("user", "Why?"), ("assistant", "Because."), ("user", "And?"),
    ]  # fmt: skip
    assert (first["system"], second["system"]) == ("row", "none")
    assert list_messages(second)[:-1] == [("user", "Who?\nA fox.")]


def test_sharegpts_system_and_tools_are_honoured(capsys: Any) -> None:
    tools = json.dumps([{"name": "look_up", "description": "Look up", "parameters": {"type": "object"}}])
    rows = [{"conversations": TALK[1:2], "system": "Be brief.", "tools": tools}, {"conversations": TALK[1:2]}]
    write_jsonl(Path("t.jsonl"), rows)
    shown = call(capsys, "preview", "t.jsonl", "--full", *ENGINE)
    assert shown.code == 0, shown.err
    assert "look_up" in shown.out
    assert shown.out.count("Be brief.") == 1


def test_tool_histories_are_asked_and_kept_with_their_calls(capsys: Any) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}]
    talk = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]
    write_jsonl(Path("t.jsonl"), [{"messages": talk}, {"messages": talk[:1]}])
    answer = call(capsys, "run", "t.jsonl", "-o", "out", *ENGINE)
    assert answer.code == 0, answer.err
    first, second = read_data("out")
    assert list_messages(first)[:-1] == [("user", "2 + 2?"), ("assistant", ""), ("tool", "4")]
    kept = json.loads(first["messages_json"])
    assert kept[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert kept[2] == {"role": "tool", "content": "4", "tool_call_id": "1"}
    assert [message["role"] for message in json.loads(second["messages_json"])] == ["user", "assistant"]
    exported = call(capsys, "export", "out", "--to", "messages")
    assert json.loads(exported.out.splitlines()[0])["messages"] == kept
    shared = json.loads(call(capsys, "export", "out", "--to", "sharegpt").out.splitlines()[0])
    assert [one["from"] for one in shared["conversations"]] == [
        "human", "function_call", "observation", "gpt",
    ]  # fmt: skip
    assert call(capsys, "verify", "out", "-q").code == 0


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_answer_that_a_row_begins_is_continued(capsys: Any, suffix: str) -> None:
    begun = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because"}]
    rows = [{"messages": begun}, {"messages": begun[:1]}]
    write_jsonl(Path("t.jsonl"), rows)
    pq.write_table(pa.Table.from_pylist(rows), "t.parquet")
    job = (f"t.{suffix}", "--final-assistant", "continue", "-o", "out")
    shown = call(capsys, "preview", *job, "--full", *ENGINE)
    assert "| <assistant>\n  | Because\n" in shown.out.replace("  |   | ", "  | ")
    answer = call(capsys, "run", *job, *ENGINE)
    assert answer.code == 0, answer.err
    assert "1 of 2 conversations end with an answer, which is continued" in answer.err
    first, second = read_data("out")
    assert (first["prefill"], second["prefill"]) == ("Because", "")
    assert list_messages(first) == [("user", "Why?"), ("assistant", f"Because{first['response']}")]
    assert list_messages(second) == [("user", "Why?"), ("assistant", second["response"])]
    assert call(capsys, "verify", "out", "-q").code == 0
    structured = call(capsys, "plan", *job, "--regex", "a+", "--engine", "scripted")
    assert structured.code == 2
    assert "--final-assistant continue: structured reads whole answers" in structured.err


def test_keys_of_messages_that_are_not_read_are_named(capsys: Any) -> None:
    talk = [
        {"role": "user", "content": "What is this?", "images": ["a.png"], "weight": None},
        {"role": "assistant", "content": "A fox.", "loss_weight": 0},
        {"role": "user", "content": "And this?"},
    ]
    write_jsonl(Path("m.jsonl"), [{"messages": talk}])
    write_jsonl(Path("b.jsonl"), [request(messages=talk)])
    for name in ("m.jsonl", "b.jsonl"):
        answer = call(capsys, "validate", name, "--engine", "scripted")
        assert answer.code == 0, answer.err
        assert "keys of messages that are not used: images, loss_weight\n" in answer.err


@pytest.mark.parametrize("column", ["text", "input", "instruction"])
def test_conversations_go_before_columns_that_only_may_be_prompts(column: str) -> None:
    write_jsonl(Path("t.jsonl"), [{column: "raw", "conversations": TALK}])
    columns = open_source(Path("t.jsonl")).detect(Selection())
    assert (columns.shape, columns.text) == ("sharegpt", "conversations")


def test_an_answer_that_is_dropped_need_not_be_readable(capsys: Any) -> None:
    call_twice_encoded = {"function": {"name": "land", "arguments": json.dumps(json.dumps({"a": 1}))}}
    answer = {"role": "assistant", "tool_calls": [call_twice_encoded]}
    write_jsonl(Path("t.jsonl"), [{"messages": [{"role": "user", "content": "land"}, answer]}])
    done = call(capsys, "run", "t.jsonl", "-o", "out", *ENGINE)
    assert done.code == 0, done.err
    assert list_messages(read_data("out")[0])[:-1] == [("user", "land")]


def test_conversations_under_a_prompts_name_are_refused_with_the_flag(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"prompt": [{"role": "user", "content": "Why?"}]}])
    refused = call(capsys, "run", "t.jsonl", *ENGINE)
    assert "column 'prompt' must be a string, not an array (--messages-column prompt)" in refused.err
    assert call(capsys, "run", "t.jsonl", "--messages-column", "prompt", "-o", "out", *ENGINE).code == 0


def test_tools_that_the_output_lacks_are_named(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"conversations": TALK, "tools": "[]"}])
    told = "t.jsonl: tools of column 'tools' are in the prompts, not in the output (--keep-columns tools)"
    assert told in call(capsys, "plan", "t.jsonl", "--engine", "scripted").err
    kept = call(capsys, "plan", "t.jsonl", "--keep-columns", "tools", "--engine", "scripted")
    assert "not in the output" not in kept.err


def test_every_unused_column_is_named_with_the_flag_that_takes_it(capsys: Any) -> None:
    write_jsonl(Path("o.jsonl"), [{"id": "a", "system_prompt": "s", "question": "q", "response": "r"}])
    answer = call(capsys, "plan", "o.jsonl", "--engine", "scripted")
    assert (
        "o.jsonl: columns not used: id (--id-column id), system_prompt (--system-column system_prompt), "
        "response\n" in answer.err
    )


def test_columns_that_only_later_rows_have_are_named_too(capsys: Any) -> None:
    write_jsonl(Path("o.jsonl"), [{"question": "q"}] * 1001 + [{"question": "q", "source": "s"}])
    answer = call(capsys, "plan", "o.jsonl", "--engine", "scripted")
    assert "columns of later rows that are not used: source" in answer.err


def test_a_prompt_column_goes_before_a_shape_that_is_only_found() -> None:
    write_jsonl(Path("t.jsonl"), [{"conversations": TALK, "question": "Why?"}])
    columns = open_source(Path("t.jsonl")).detect(Selection())
    assert (columns.prompt, columns.shape) == ("question", None)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_alpaca_is_found_and_its_input_joined(capsys: Any, suffix: str) -> None:
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Wait.", "input": None, "output": "."},
    ]
    write_jsonl(Path("a.jsonl"), rows)
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    answer = call(capsys, "run", f"a.{suffix}", "-o", "out", "--keep-columns", "output", *ENGINE)
    assert answer.code == 0, answer.err
    assert "read as Alpaca" in answer.err
    made = read_data("out")
    assert [list_messages(row)[-2][1] for row in made] == ["Add.\n1, 2", "Say hi.", "Wait."]
    assert [row["output"] for row in made] == ["3", "hi", "."]


def test_plain_and_a_named_column_read_alpaca_as_before() -> None:
    write_jsonl(Path("a.jsonl"), [{"instruction": "Add.", "input": "1, 2"}])
    source = open_source(Path("a.jsonl"))
    before = {"prompt": "instruction", "messages": None, "system": None, "id": None, "keep": []}
    assert source.detect(Selection(format="plain")).to_dict() == before
    assert source.detect(Selection(prompt_column="instruction")).to_dict() == before


@pytest.mark.parametrize(
    ("record", "flags", "message"),
    [
        ({"conversations": "no"}, (), "t.jsonl:1: column 'conversations': messages is a string, and as JSON"),
        (
            {"conversations": [{"from": "parrot", "value": "x"}]},
            (),
            "message 1 is from 'parrot'; it must be one of",
        ),
        ({"conversations": [{"from": "human"}]}, (), "the value of message 1 must be a string, not null"),
        ({"conversations": TALK[2:3]}, (), "there is no message to answer"),
        ({"conversations": TALK, "system": "Be long."}, (), "another system message than column 'system'"),
        ({"conversations": TALK}, ("--final-assistant", "refuse"), "the last message is the assistant's"),
        ({"instruction": "a", "history": "b"}, (), "column 'history' must be a list of pairs of texts"),
        ({"instruction": "a", "input": 5}, (), "t.jsonl:1: column 'input' must be a string, not a number"),
        ({"instruction": " ", "input": "x"}, (), "t.jsonl:1: column 'instruction' is blank"),
        ({"question": "x"}, ("--input-format", "alpaca"), "no column 'instruction'"),
        ({"question": "x"}, ("--input-format", "tsv"), "input.format (flag): Input should be 'auto'"),
        (
            {"instruction": "a", "input": "b"},
            ("--input-format", "alpaca", "--messages-column", "input"),
            "records of the format alpaca have no messages column",
        ),
    ],
)
def test_what_a_record_of_a_shape_is_refused_for(
    capsys: Any, record: dict[str, Any], flags: tuple[str, ...], message: str
) -> None:
    write_jsonl(Path("t.jsonl"), [record])
    answer = call(capsys, "run", "t.jsonl", *flags, *ENGINE)
    assert answer.code == 2, answer
    assert message in answer.err, answer.err


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_a_template_writes_prompts_from_any_columns(capsys: Any, suffix: str) -> None:
    rows = [
        {"Topic name": "foxes", "question": "Why?", "id": "a"},
        {"Topic name": "", "question": "How?", "id": "b"},
    ]
    write_jsonl(Path("r.jsonl"), rows)
    pq.write_table(pa.Table.from_pylist(rows), "r.parquet")
    Path("r.csv").write_text("Topic name,question,id\nfoxes,Why?,a\n,How?,b\n")
    Path("t.jinja").write_text(
        '{% if row["Topic name"] %}\nAbout {{ row["Topic name"] | upper }}:\n{% endif %}\n{{ question }}\n'
    )
    flags = ("--prompt-template", "t.jinja", "--id-column", "id", "--keep-columns", "question", *ENGINE)
    answer = call(capsys, "run", f"r.{suffix}", "-o", "out", *flags)
    assert answer.code == 0, answer.err
    assert [list_messages(row)[-2][1] for row in read_data("out")] == ["About FOXES:\nWhy?", "How?"]
    assert call(capsys, "verify", "out", "-q").code == 0


def test_the_templates_text_is_identity_and_its_place_is_not(capsys: Any) -> None:
    write_jsonl(Path("r.jsonl"), [{"question": "Why?"}])
    marks = []
    for name, text in (
        ("a.jinja", "{{ question }}!"),
        ("b.jinja", "{{ question }}!"),
        ("c.jinja", "{{ question }}"),
    ):
        Path(name).write_text(text)
        answer = call(capsys, "plan", "r.jsonl", "--prompt-template", name, "--json", *ENGINE[:-1])
        marks.append(json.loads(answer.out)["fingerprint"])
    assert marks[0] == marks[1] != marks[2]


def test_a_run_by_a_template_is_retried_from_the_kept_job(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"question": "Why?"}, {"question": "How?"}])
    (tmp_path / "t.jinja").write_text("Tell me: {{ question }}")
    missing = f"engine.fail_while_missing={tmp_path / 'flag'}"
    fails = ("--set", "engine.fail_every=1", "--set", missing)
    job = ("run", "r.jsonl", "--prompt-template", "t.jinja", "-o", "out", *fails, *ENGINE)
    assert synthia(*job).returncode == 3
    (tmp_path / "flag").touch()
    done = synthia("retry", "out", "-q")
    assert done.returncode == 0, done.stderr
    assert list_messages(read_data(tmp_path / "out")[0])[-2] == ("user", "Tell me: Why?")
    (tmp_path / "t.jinja").write_text("Tell us: {{ question }}")
    changed = synthia(*job)
    assert changed.returncode == 4
    assert "input.columns.template" in changed.stderr


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ question", "--prompt-template, line 1: unexpected end of template"),
        ("Hello", "--prompt-template: expected at least one {{ COLUMN }}"),
        ("a\n{{ questoin }}", "r.jsonl:1: line 2 of the prompt template: 'questoin' is undefined; did"),
        ("{{ nothing }}{{ question }}", "a null would be rendered as None"),
        ("{{ question.upper }}", "a function would be rendered; call it with ()"),
        ("{{ question }}\n{{ 1 / number }}", "r.jsonl:1: line 2 of the prompt template: division by zero"),
        ("{% if number %}{{ question }}{% endif %}", "r.jsonl:1: the prompt template renders a blank prompt"),
        ("{{ question.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{% include 'x' %}{{ question }}", "no loader for this environment specified"),
        ("{{ [question, 'b'] | random }}", "--prompt-template, line 1: No filter named 'random'"),
        ("{{ lipsum() }} {{ question }}", "'lipsum' is undefined"),
        ("{{ question | map('upper') }}", "an object without a text of its own would be rendered"),
        ("{% for key in row %}{{ key }}{% endfor %}", '`row` can only be used as row["COLUMN NAME"]'),
        ("{{ items.append(1) }}{{ question }}", "access to attribute 'append' of 'list' object is unsafe"),
    ],
)  # fmt: skip
def test_what_a_template_is_refused_for(capsys: Any, template: str, message: str) -> None:
    write_jsonl(Path("r.jsonl"), [{"question": "Why?", "nothing": None, "number": 0, "items": []}])
    Path("t.jinja").write_text(template)
    answer = call(capsys, "run", "r.jsonl", "--prompt-template", "t.jinja", *ENGINE)
    assert answer.code == 2, answer
    assert message in answer.err, answer.err
    assert not Path("outputs").exists()


def test_a_template_beside_a_prompt_column_or_that_is_not_there_is_refused(capsys: Any) -> None:
    write_jsonl(Path("r.jsonl"), [{"question": "Why?"}])
    Path("t.jinja").write_text("{{ question }}")
    both = call(
        capsys, "run", "r.jsonl", "--prompt-template", "t.jinja", "--prompt-column", "question", *ENGINE
    )
    assert (
        both.code,
        "--prompt-template writes the prompts; omit the column 'question'" in both.err,
    ) == (2, True)
    gone = call(capsys, "run", "r.jsonl", "--prompt-template", "no.jinja", *ENGINE)
    assert (gone.code, "--prompt-template no.jinja: cannot be read" in gone.err) == (2, True)


def test_a_template_reads_just_the_columns_that_it_names() -> None:
    template = PromptTemplate('{% for x in tags %}{{ x }}{% endfor %}{{ row["a b"] }}{% set y = 1 %}{{ y }}')
    assert template.columns == ("a b", "tags")
    assert template.write({"a b": "!", "tags": ["p", "q"]}) == (Message("user", "pq!1"),)


@pytest.mark.parametrize("name", ["b.jsonl", "t.jsonl", "a.jsonl"])
def test_init_drafts_a_job_of_every_shape(
    synthia: Command, tmp_path: Path, demo_model: Path, name: str
) -> None:
    share_demo_model(demo_model, tmp_path / "cache")
    shutil.copy(EXAMPLE, tmp_path / "b.jsonl")
    write_jsonl(tmp_path / "t.jsonl", [{"conversations": TALK}])
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "1", "output": "o"}])
    made = synthia("init", name, "-o", "job.yaml")
    assert made.returncode == 0, made.stderr
    assert "  format: " in (tmp_path / "job.yaml").read_text()
    done = synthia("validate", "job.yaml", "--engine", "scripted", "--pool", "local")
    assert (done.returncode, "no faults" in done.stdout) == (0, True), done.stderr
