"""OpenAI batch files, ShareGPT, Alpaca and prompt templates: what a row becomes, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Command, write_jsonl
from inside import call

from synthia_batch.core.types import Message
from synthia_batch.inputs import Selection, open_source
from synthia_batch.inputs.records.openai_batch import read_sampling
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


def test_every_key_of_a_body_is_honoured_or_refused() -> None:
    body = request(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.1, max_tokens=5, stop=["."], presence_penalty=1,
        frequency_penalty=1, logit_bias={"5": 1}, seed=3, user="me", metadata={"a": "b"}, logprobs=False,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    )["body"]  # fmt: skip
    assert read_sampling(body) == {
        "temperature": 0, "top_p": 0.5, "top_k": 0, "min_p": 0.1, "max_tokens": 5, "stop": ["."],
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
        ([request(n=2)], "b.jsonl:1: column 'body': the body sets n, which is not supported"),
        ([request(), request(2, tools=[{}])], "b.jsonl:2: column 'body': the body sets tools"),
        ([request(logprobs=True)], "set --logprobs K for the whole job"),
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
    assert "read as ShareGPT: the last answer of each conversation is regenerated" in answer.err
    first, second = read_data("out")
    assert list_messages(first)[:-1] == [
        ("system", "Be brief."), ("user", "Why?"), ("assistant", "Because."), ("user", "And then?"),
    ]  # fmt: skip
    assert (first["system"], second["system"]) == ("row", "synthia") or second["system"] == "row"
    assert list_messages(second)[-2] == ("user", "Why?")


def test_sharegpt_as_turns_has_every_answer_made_again(capsys: Any) -> None:
    write_jsonl(Path("t.jsonl"), [{"conversations": TALK}])
    flags = ("--input-format", "sharegpt", "--turns-column", "conversations")
    assert call(capsys, "run", "t.jsonl", "-o", "out", *flags, *ENGINE).code == 0
    (row,) = read_data("out")
    assert [role for role, _ in list_messages(row)] == ["system", "user", "assistant", "user", "assistant"]
    assert row["system"] == "row"
    assert list_messages(row)[2][1] != "Because."


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
            {"conversations": [{"from": "tool", "value": "x"}]},
            (),
            "message 1 is from 'tool'; it must be one of",
        ),
        ({"conversations": [{"from": "human"}]}, (), "message 1 must be an object with from and value"),
        ({"conversations": TALK[2:3]}, (), "has no message from human"),
        ({"conversations": TALK[1:2] + TALK[:2]}, (), "only the first message may be a system message"),
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
def test_init_drafts_a_job_of_every_shape(synthia: Command, tmp_path: Path, name: str) -> None:
    shutil.copy(EXAMPLE, tmp_path / "b.jsonl")
    write_jsonl(tmp_path / "t.jsonl", [{"conversations": TALK}])
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "1", "output": "o"}])
    made = synthia("init", name, "-o", "job.yaml")
    assert made.returncode == 0, made.stderr
    assert "  format: " in (tmp_path / "job.yaml").read_text()
    done = synthia("validate", "job.yaml", "--engine", "scripted", "--pool", "local")
    assert (done.returncode, "no faults" in done.stdout) == (0, True), done.stderr
