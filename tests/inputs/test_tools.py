"""Tools that a row brings: how they are read, and how a prompt tells of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, write_jsonl
from reading import list_faults, read_all

from synthia_batch.core.types import Message
from synthia_batch.models.prompts.formats import ChatFormat, PlainChatFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-s", "none")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "default": None}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
TEMPLATE = (
    "{% if tools %}Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}{{ '\\n' }}{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ '\\n' }}{% endfor %}assistant:"
)


def test_a_row_brings_them_as_a_list_or_as_text(tmp_path: Path) -> None:
    brings: list[Any] = [[WEATHER, CLOCK], json.dumps([WEATHER]), [], "", None]
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "tools": value} for value in brings])
    wanted = [(WEATHER, CLOCK), (WEATHER,), (), (), ()]
    assert [row.tools for row in read_all(source, tools_column="tools")] == wanted
    assert [row.tools for row in read_all(source)] == [()] * 5
    texts = [json.dumps(value) if value else None for value in ([WEATHER, CLOCK], None)]
    pq.write_table(pa.table({"prompt": ["a", "b"], "tools": texts}), tmp_path / "q.parquet")
    assert [row.tools for row in read_all(tmp_path / "q.parquet", tools_column="tools")] == [
        (WEATHER, CLOCK),
        (),
    ]


def test_structs_have_no_more_names_than_were_said(tmp_path: Path) -> None:
    plain = {"type": "function", "function": {"name": "a", "description": "b"}}
    table = pa.table({"prompt": ["a", "b"], "tools": [[CLOCK, plain], None]})
    assert table.schema.field("tools").type.value_type.field("function").type.num_fields == 2
    pq.write_table(table, tmp_path / "q.parquet")
    assert [row.tools for row in read_all(tmp_path / "q.parquet", tools_column="tools")] == [
        (CLOCK, plain),
        (),
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"type": "function"}, "tools must be a list of definitions, not an object"),
        (["get_weather"], "tool 1 must be an object with type and function, not a string"),
        ([CLOCK, {"type": "code"}], "tool 2 has the type 'code'; it must be 'function'"),
        ([{"type": "function"}], "tool 1 has no function, an object with its name; it is null"),
        ([{"type": "function", "function": {"name": " "}}], "the function of tool 1 has no name"),
        ([CLOCK, CLOCK], "the tool 'get_time' is defined twice"),
        (
            [{"type": "function", "function": {"name": "a", "parameters": "none"}}],
            "tool 'a': parameters must be a JSON Schema, an object, not a string",
        ),
        ("[{", "tools is a string, and as JSON not valid JSON"),
    ],
    ids=str,
)
def test_what_is_no_definition_is_refused_with_its_line(tmp_path: Path, value: Any, words: str) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}, {"prompt": "Why?", "tools": value}])
    (fault,) = list_faults(source, tools_column="tools")
    assert fault.startswith(f"{source}:2: column 'tools': {words}")


def test_the_template_gets_them_and_a_template_that_ignores_them_is_known() -> None:
    chat = ChatFormat(TEMPLATE, {})
    prompt = chat.write([Message("user", "Rain?")], [WEATHER])
    assert prompt == f"Tools: {json.dumps(WEATHER)}\nuser: Rain?\nassistant:"
    assert chat.write([Message("user", "Rain?")]) == "user: Rain?\nassistant:"
    assert chat.shows_tools()
    assert not ChatFormat("{% for m in messages %}{{ m.content }}{% endfor %}", {}).shows_tools()


def test_prompts_without_tools_are_what_they_were() -> None:
    renderer = Renderer(PlainChatFormat(), ByteTokenizer())
    assert renderer.render([Message("user", "a")]) == b"<user>\na\n<assistant>\n"
    assert renderer.render([Message("user", "a")], [CLOCK]) == (
        f"<tools>\n{json.dumps([CLOCK])}\n<user>\na\n<assistant>\n".encode()
    )


def test_a_rows_tools_are_in_its_prompt_and_in_the_identity(synthia: Command, tmp_path: Path) -> None:
    records = [{"prompt": "Rain?", "tools": [WEATHER]}, {"prompt": "Rain?", "tools": []}]
    source = write_jsonl(tmp_path / "q.jsonl", records)
    job = (source, *SCRIPTED, "--tools-column", "tools")
    shown = json.loads(synthia("preview", *job, "--json").stdout)
    prompts = [row["samples"][0]["prompt"] for row in shown["rows"]]
    assert "get_weather" in prompts[0]
    assert "tools" not in prompts[1]
    done = synthia("run", *job, "-o", "out")
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert rows[0]["prompt_tokens"] > rows[1]["prompt_tokens"] == len(b"<user>\nRain?\n<assistant>\n")
    assert rows[0]["response"] != rows[1]["response"]
    refused = synthia("run", source, *SCRIPTED, "-o", "out")
    assert refused.returncode == 4
    assert "input.columns.tools: 'tools' before, None now" in refused.stderr


def test_a_format_that_cannot_tell_of_tools_is_refused(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Rain?", "tools": [WEATHER]}])
    flags = ("plan", source, "-m", "demo", "--tools-column", "tools")
    for more, words in (
        ((), "--tools-column: the chat template has no place for tools"),
        (("--preset", "synthia-7b"), "--tools-column: the format synthia has no place for tools"),
    ):
        refused = synthia(*flags, *more)
        assert refused.returncode == 2, refused.stderr
        assert words in refused.stderr
    (tmp_path / "tools.jinja").write_text(TEMPLATE)
    taken = synthia(*flags, "--chat-template", "tools.jinja", "--json")
    assert taken.returncode == 0, taken.stderr
    assert json.loads(taken.stdout)["prompt_tokens"]["total"] > 60
