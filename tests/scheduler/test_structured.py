"""What an answer must be: checked before anything is made, and the answers afterwards."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Command, read_bytes_of_data, write_jsonl
from reading import list_faults, read_all

from synthia_batch.core.types import Failed, Finished, Message, Request, Row, RowSampling, Structure
from synthia_batch.job.plan import expand_row
from synthia_batch.job.resolved import PlanSpec, SystemText
from synthia_batch.job.structured import make_structure
from synthia_batch.job.structured_check import check_structure
from synthia_batch.models.prompts.formats import PlainChatFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer
from synthia_batch.scheduler.answer_check import validate_answer
from synthia_batch.scheduler.conversation import Context
from synthia_batch.scheduler.multi_turn import MultiTurnSession

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-s", "none")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JSON = make_structure("json_schema", SCHEMA)


def finish(response: str, reason: str = "stop", ordinal: int = 0) -> Finished:
    return Finished(
        ordinal=ordinal, response=response, reasoning=None, finish_reason=reason, prompt_tokens=3,
        completion_tokens=5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("structure", "response"),
    [
        (JSON, '{"name": "Ada", "age": 36}'),
        (JSON, ' {"age":0,"name":""}\n'),
        (make_structure("regex", r"[0-9]{3}"), "123"),
        (make_structure("choice", ["yes", "no"]), "no"),
        (make_structure("grammar", 'root ::= "a"+'), "anything: only the backend can tell"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_answer_that_fits_is_left_as_it_is(structure: Structure, response: str) -> None:
    made = finish(response)
    assert validate_answer(structure, made) is made


@pytest.mark.parametrize(
    ("structure", "response", "words"),
    [
        (JSON, "Ada is 36", "the answer is no JSON: Expecting value"),
        (
            JSON,
            '{"name": "Ada", "age": 136}',
            "at age: 136 is greater than the maximum",
        ),
        (JSON, '{"name": "Ada"}', "does not fit the schema: 'age' is a required property"),
        (JSON, '{"name": "Ada", "age": NaN}', "the answer is no JSON: NaN is no number of JSON"),
        (make_structure("regex", "[0-9]{3}"), "1234", "does not match the regular expression"),
        (make_structure("regex", "[0-9]{3}"), "123\n", "does not match the regular expression"),
        (make_structure("choice", ["yes", "no"]), "no.", "is none of the choices"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_that_does_not_fails_with_why_and_how_it_begins(
    structure: Structure, response: str, words: str
) -> None:
    failed = validate_answer(structure, finish(response))
    assert isinstance(failed, Failed)
    assert failed.code == "structured_output_invalid"
    assert words in failed.message
    assert failed.message.endswith(f"it begins {response!r}")


@pytest.mark.parametrize(
    ("structure", "response"),
    [
        (JSON, '{"name": "Ada", "a'),
        (make_structure("regex", "[0-9]{3}"), "12"),
        (make_structure("choice", ["yes", "no"]), "ye"),
        (make_structure("grammar", 'root ::= "a"+'), "aa"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_that_was_cut_off_says_what_to_raise(structure: Structure, response: str) -> None:
    failed = validate_answer(structure, finish(response, "length"))
    assert isinstance(failed, Failed)
    assert failed.code == "structured_output_cut_off"
    assert "cut off after 5 tokens" in failed.message
    assert "raise max_tokens" in failed.message


def test_one_that_was_cut_off_and_is_whole_all_the_same_is_finished() -> None:
    made = finish('{"name": "Ada", "age": 3}', "length")
    assert validate_answer(JSON, made) is made


@pytest.mark.parametrize(
    ("kind", "said", "words"),
    [
        ("json_schema", {"type": "objekt"}, "json_schema: at type: 'objekt' is not valid under any"),
        ("json_schema", {"properties": {"a": {"minimum": "x"}}}, "json_schema: at properties/a/minimum"),
        ("json_schema", [1], "json_schema: must be an object"),
        ("regex", "(a", "regex: missing ), unterminated subpattern at position 0"),
        ("regex", "a\0", "regex: it holds a NUL"),
        ("choice", ["a", "a"], "choice: a text is there twice"),
        ("grammar", " \n", "grammar: it is empty"),
    ],
    ids=str,
)
def test_what_is_no_structure_is_refused(kind: str, said: Any, words: str) -> None:
    with pytest.raises(ValueError, match="^" + words.replace("(", r"\(").replace(")", r"\)")):
        check_structure(make_structure(kind, said))


def test_a_schema_keeps_the_order_of_its_keys_and_no_blanks() -> None:
    assert make_structure("json_schema", {"b": 1, "a": [2]}).text == '{"b":1,"a":[2]}'


def test_rows_say_their_own(tmp_path: Path) -> None:
    says = [
        {"structured": {"choice": ["a", "b"]}},
        {"structured": {"json_schema": SCHEMA}},
        {"structured": {"json_schema": json.dumps(SCHEMA, indent=1)}, "temperature": 0},
        {"structured": {"regex": "x+"}},
        {"structured": {"grammar": 'root ::= "a"'}},
        {},
    ]
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "how": said} for said in says])
    rows = read_all(source, sampling_column="how")
    wanted = [
        make_structure("choice", ["a", "b"]), JSON, JSON, make_structure("regex", "x+"),
        make_structure("grammar", 'root ::= "a"'), None,
    ]  # fmt: skip
    assert [row.sampling and row.sampling.structure for row in rows] == wanted


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"json_schema": {"type": "objekt"}}, "structured: json_schema: at type: 'objekt'"),
        ({"json_schema": "{"}, "structured: json_schema"),
        ({"regex": "(a"}, "structured: regex: missing )"),
        ({}, "structured: name one of json_schema, regex, choice and grammar"),
        ({"regex": "a", "choice": ["a"]}, "structured: regex and choice are set"),
        ({"regexp": "a"}, "'regexp' is not a key of sampling"),
    ],
    ids=str,
)
def test_a_row_with_another_is_refused_with_its_line(tmp_path: Path, said: Any, words: str) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "how": {"structured": said}}])
    (fault,) = list_faults(source, sampling_column="how")
    assert f"q.jsonl:1: column 'how': {words}" in fault


def test_a_structure_and_a_least_length_do_not_go_together_in_a_row(tmp_path: Path) -> None:
    said = {"structured": {"regex": "a"}, "min_tokens": 3}
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?", "how": said}])
    (fault,) = list_faults(source, sampling_column="how")
    assert "structured: it determines where an answer ends; leave out min_tokens and ignore_eos" in fault


def ask(conversations: MultiTurnSession, sampling: RowSampling | None) -> Request:
    plan = PlanSpec(
        systems=(SystemText(name="none", text=""),), system_column=None, replace_own_system=True,
        num_samples=1, seed=3,
    )  # fmt: skip
    row = Row(
        index=0, id="a", messages=(Message("user", "Why?"),), system=None, kept={}, line=1, sampling=sampling
    )
    (sample,) = expand_row(row, plan)
    return conversations.begin(sample)


def test_a_rows_structure_takes_the_place_of_the_jobs() -> None:
    context = Context(max_model_len=1000, max_tokens=20, on_overflow="fail")
    renderer = Renderer(PlainChatFormat(), ByteTokenizer())
    conversations = MultiTurnSession(renderer, context, structure=make_structure("choice", ["yes", "no"]))
    own = make_structure("regex", "[0-9]+")
    assert ask(conversations, None).structure is None, "the engine knows the job's"
    assert conversations.advance(finish("yes")).record == finish("yes")
    assert isinstance(conversations.advance(finish("12")).record, Failed)
    assert ask(conversations, RowSampling(structure=own)).structure == own
    assert conversations.advance(finish("12")).record == finish("12")
    ask(conversations, RowSampling())
    assert isinstance(conversations.advance(finish("12")).record, Failed), "what was a row's is forgotten"


def test_a_job_with_a_schema_makes_it_or_says_why_not(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Who is {n}?"} for n in range(8)])
    (tmp_path / "person.json").write_text(json.dumps(SCHEMA, indent=2))
    job = ("run", source, *SCRIPTED, "--json-schema", "person.json")
    for out, batch in (("wide", 64), ("narrow", 1)):
        done = synthia(*job, "--set", f"engine.max_num_seqs={batch}", "-o", out)
        assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "wide" / "data").to_pylist()
    assert [sorted(json.loads(row["response"])) for row in rows] == [["age", "name"]] * 8
    assert read_bytes_of_data(tmp_path / "wide") == read_bytes_of_data(tmp_path / "narrow")
    cut = synthia(*job, "--max-tokens", 2, "-o", "cut")
    assert cut.returncode == 3, cut.stderr
    failed = pq.read_table(tmp_path / "cut" / "failed").to_pylist()
    assert {row["code"] for row in failed} == {"structured_output_cut_off"}
    assert "every sample failed" in cut.stderr


def test_an_invalid_answer_is_data_and_named(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}, {"prompt": "How?"}])
    done = synthia("run", source, *SCRIPTED, "--regex", "[0-9]+", "-o", "out")
    assert done.returncode == 3, done.stderr
    told = synthia("failed", "out").stdout
    assert "q.jsonl:1: structured_output_invalid: the answer does not match the regular expression" in told
    verified = synthia("verify", "out")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_the_identity_has_the_text_and_not_the_file(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    for name, text in (("a.json", json.dumps(SCHEMA)), ("b.json", json.dumps(SCHEMA, indent=3))):
        (tmp_path / name).write_text(text)
    plans = [
        json.loads(synthia("plan", source, *SCRIPTED, *flags, "--json").stdout)["fingerprint"]
        for flags in ((), ("--json-schema", "a.json"), ("--json-schema", "b.json"), ("--choice", "a,b"))
    ]
    assert plans[1] == plans[2]
    assert len(set(plans)) == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--json-schema", "none.json"), "none.json: cannot be read: No such file"),
        (("--json-schema", "bad.json"), "bad.json:2:3: not valid JSON"),
        (("--json-schema", "odd.json"), "structured.json_schema: at type: 'objekt' is not valid"),
        (("--regex", "(a"), "structured.regex: missing ), unterminated subpattern"),
        (("--choice", "a,b,a"), "structured.choice: a text is there twice"),
        (("--regex", "a", "--choice", "a"), "regex and choice are set; an answer can have only one"),
        (("--set", "structured.json=x"), "unknown key. Did you mean 'structured.json_schema'?"),
    ],
)
def test_what_cannot_be_asked_for_ends_before_anything_is_made(
    synthia: Command, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Why?"}])
    (tmp_path / "bad.json").write_text("{\n  x}")
    (tmp_path / "odd.json").write_text('{"type": "objekt"}')
    done = synthia("run", source, *SCRIPTED, *flags, "-o", "out")
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_file_names_its_schema_beside_itself(synthia: Command, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    write_jsonl(folder / "q.jsonl", [{"prompt": "Why?"}])
    (folder / "s.json").write_text('{"type": "objekt"}')
    (folder / "job.yaml").write_text(
        "input: {path: q.jsonl}\nengine: {kind: scripted}\nstructured:\n  json_schema: s.json\n"
    )
    done = synthia("plan", folder / "job.yaml")
    assert done.returncode == 2
    assert f"{folder}/job.yaml:4:16: structured.json_schema: at type" in done.stderr
