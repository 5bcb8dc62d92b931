"""Numbered rows: drawn columns, conversations from a template, and questions that the model writes."""

import json
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import share_demo_model, write_jsonl
from inside import call

from synthia_batch import Job
from synthia_batch.core.types import Message
from synthia_batch.errors import UsageError
from synthia_batch.models.prompts.formats import ChatFormat, PlainChatFormat, SynthiaCardFormat, SynthiaFormat

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-q")
FILE = """\
input:
  rows: 400
  prompt_template: ask.j2
  columns:
    persona: {file: personas.jsonl}
    tone: {choice: [dry, warm]}
    level: {weights: {easy: 3, hard: 1}}
    topics: {choice: [a, b, c], pick: 2}
engine: {kind: scripted}
pool: {kind: local}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job file of numbered rows, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_jsonl(
        tmp_path / "personas.jsonl", [{"persona": name} for name in ("a baker", "a nurse", "a pilot")]
    )
    Path("ask.j2").write_text("{{ persona }} asks a {{ tone }}, {{ level }} question of {{ topics | join }}")
    Path("rows.yaml").write_text(FILE)
    return tmp_path / "rows.yaml"


def read(directory: str | Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(directory, "data")).to_pylist()
    return rows


def test_numbered_rows_have_drawn_columns_which_are_kept(job: Path, capsys: Any) -> None:
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 0
    rows = read("out")
    assert [row["id"] for row in rows] == [str(number) for number in range(400)]
    assert {row["persona"] for row in rows} == {"a baker", "a nurse", "a pilot"}
    assert 150 < Counter(row["tone"] for row in rows)["dry"] < 250
    assert 60 < Counter(row["level"] for row in rows)["hard"] < 140
    assert all(len(set(row["topics"])) == 2 for row in rows)
    first = rows[0]
    assert first["messages"][0]["content"] == (
        f"{first['persona']} asks a {first['tone']}, {first['level']} question of {''.join(first['topics'])}"
    )
    again = call(capsys, "run", "rows.yaml", "-o", "out", "-q")
    assert (again.code, "already complete" in again.err) == (0, True)


def test_draws_depend_on_seed_column_and_number_alone(job: Path, capsys: Any) -> None:
    def draw(name: str, text: str, *flags: str) -> list[tuple[Any, ...]]:
        Path(f"{name}.yaml").write_text(text)
        assert call(capsys, "run", f"{name}.yaml", "-o", name, "-q", *flags).code == 0
        return [(row["persona"], row["tone"], row["level"]) for row in read(name)]

    whole = draw("whole", FILE)
    assert draw("fewer", FILE.replace("400", "30")) == whole[:30]
    assert draw("more", FILE.replace("    tone:", "    other: {choice: [1, 2]}\n    tone:")) == whole
    assert draw("seeded", FILE, "--seed", "1") != whole
    # The records of the file count, not its name or format.
    pq.write_table(pa.table({"x": [0, 0, 0], "persona": ["a baker", "a nurse", "a pilot"]}), "p.parquet")
    assert draw("parquet", FILE.replace("personas.jsonl}", "p.parquet, column: persona}")) == whole


def test_the_saved_job_finds_its_files_from_another_directory(
    job: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("ask.j2").write_text("{{ {'a baker': 1, 'a nurse': 2}[persona] }}")
    faults = call(capsys, "run", "rows.yaml", "-o", "out", "-q")
    assert (faults.code, "rows://400:" in faults.err) == (2, True)
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q", "--on-bad-row", "fail").code == 0
    (job.parent / "elsewhere").mkdir()
    monkeypatch.chdir(job.parent / "elsewhere")
    failed = call(capsys, "failed", "../out")
    assert "rows://400:" in failed.out
    assert call(capsys, "verify", "../out").code == 0
    retried = call(capsys, "retry", "../out", "-q")
    assert retried.code == 0, retried.err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rows: 400", "rows: 400\n  path: q.jsonl", "Input should have a path or rows, not both"),
        ("rows: 400", "path: personas.jsonl", "Input should have rows, for which columns are drawn"),
        ("rows: 400", "rows: 0", "rows.yaml:2:9: input.rows: Input should be greater than or equal to 1"),
        ("tone: {choice", "tone: {choise", "rows.yaml:6:12: input.columns.tone.choise: unknown key"),
        ("choice: [dry, warm]", "choice: []", "input.columns.tone.choice: Input should not be empty"),
        ("choice: [dry, warm]", "pick: 1", "Input should have one of choice, weights and file"),
        ("choice: [dry, warm]", "choice: [dry, warm], pick: 3", "at least pick = 3 values, and has 2"),
        ("easy: 3", "easy: 0", "Input should be greater than 0"),
        ("tone:", "number:", "no drawn column `number`"),
        ("personas.jsonl", "person.jsonl", "person.jsonl: there is no such file"),
        ("personas.jsonl", "personas.jsonl, column: name", "has no column 'name'; there are persona"),
        ("personas.jsonl", "personas.jsonl, pick: 4", "pick = 4 different ones, and there are 3"),
        ("personas.jsonl", "hf://org/data", "Input should be a file on this machine, not an address"),
        ("tone: {", "id: {", "column 'id' cannot be kept"),
    ],
)
def test_a_wrong_declaration_is_refused(job: Path, capsys: Any, old: str, new: str, told: str) -> None:
    assert FILE.count(old) == 1
    job.write_text(FILE.replace(old, new))
    done = call(capsys, "run", "rows.yaml", "-o", "out", "-q")
    assert (done.code, told in done.err) == (2, True), done.err
    assert not Path("out").exists()


def test_every_record_of_a_file_can_be_drawn(job: Path, capsys: Any) -> None:
    pool = pa.table({"persona": pa.array(["a"] * 50_000 + ["b"] * 50_000).dictionary_encode()})
    pq.write_table(pool, "big.parquet")
    assert Path("big.parquet").stat().st_size < 50_000, "fewer bytes than records"
    job.write_text(FILE.replace("personas.jsonl", "big.parquet"))
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 0
    assert 150 < Counter(row["persona"] for row in read("out"))["a"] < 250


def test_the_order_of_weights_changes_nothing(job: Path, capsys: Any, tmp_path: Path) -> None:
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 0
    shutil.rmtree(tmp_path / "cache")
    job.write_text(FILE.replace("{easy: 3, hard: 1}", "{hard: 1, easy: 3}"))
    again = call(capsys, "run", "rows.yaml", "-o", "out", "-q")
    assert (again.code, "already complete" in again.err) == (0, True), again.err


@pytest.mark.parametrize("sampler", ["weights: {a: 1000000000000, b: 1, c: 1}", "choice: [a, b, c]"])
def test_several_are_drawn_without_repeating_one(job: Path, capsys: Any, sampler: str) -> None:
    job.write_text(FILE.replace("choice: [a, b, c], pick: 2", f"{sampler}, pick: 3"))
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 0
    rows = read("out")
    assert all(sorted(row["topics"]) == ["a", "b", "c"] for row in rows)
    firsts = Counter(row["topics"][0] for row in rows)
    assert firsts["a"] == 400 if sampler.startswith("w") else 90 < firsts["a"] < 180


def test_the_number_of_rows_can_be_set_anew(job: Path, capsys: Any) -> None:
    job.write_text(FILE.replace("rows: 400", "rows: 1K"))
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 0
    assert call(capsys, "retry", "out", "-q").code == 0
    assert "rows" in call(capsys, "doctor", "rows.yaml", "--json").out
    fewer = call(capsys, "run", "rows.yaml", "-o", "fewer", "-q", "--set", "input.rows=30")
    assert (fewer.code, len(read("fewer"))) == (0, 30), fewer.err
    declared = Job(input={"rows": "1K"})
    assert Job(**json.loads(declared.model_dump_json())) == declared
    assert declared.input.model_copy(update={"rows": 60}).paths == ("rows://60",)
    mixed = call(capsys, "run", "rows://5", "personas.jsonl", *SCRIPTED)
    assert (mixed.code, "numbered rows are an input of their own" in mixed.err) == (2, True)


def test_rows_can_be_named_as_a_path(job: Path, capsys: Any) -> None:
    Path("count.j2").write_text("Count to {{ number }}.")
    done = call(capsys, "run", "rows://1K", "--prompt-template", "count.j2", *SCRIPTED, "-o", "out")
    assert done.code == 0, done.err
    assert [row["messages"][0]["content"] for row in read("out")][-1] == "Count to 999."
    wrong = call(capsys, "run", "rows://many", *SCRIPTED)
    assert (wrong.code, "expected a number of rows, such as rows://1000" in wrong.err) == (2, True)
    assert Job(input={"rows": 1000}).input.path == "rows://1000"
    with pytest.raises(UsageError, match="a path or rows, not both"):
        Job(input={"rows": 1000, "path": "q.jsonl"})


def test_a_template_writes_whole_conversations(job: Path, capsys: Any) -> None:
    text = (
        '[{"role": "system", "content": {{ ("You are " ~ persona) | tojson }}},'
        ' {"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},'
        ' {"role": "user", "content": {{ tone | tojson }}}]'
    )
    Path("talk.j2").write_text(text)
    job.write_text(FILE.replace("prompt_template: ask.j2", "messages_template: talk.j2"))
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 0
    for row in read("out"):
        asked = [(turn["role"], turn["content"]) for turn in row["messages"][:-1]]
        assert asked == [
            ("system", f"You are {row['persona']}"),
            ("user", "one"),
            ("assistant", "1"),
            ("user", row["tone"]),
        ]
    for wrong, told in (
        (text[:-1], "what the messages template renders: is a string, and as JSON"),
        (text.replace('"one"', '"\\ud800"'), "what the messages template renders: "),
        (text.replace('"user"', '"usre"'), "what the messages template renders: "),
        ('[{"role": "user", "content": {{ "" | tojson }}}, {{ tone | tojson }}]', "message 1 is blank"),
    ):
        Path("talk.j2").write_text(wrong)
        done = call(capsys, "run", "rows.yaml", "-o", "wrong", "-q")
        assert (done.code, told in done.err) == (2, True), done.err
    job.write_text(FILE.replace("  columns", "  messages_template: talk.j2\n  columns"))
    both = call(capsys, "run", "rows.yaml", "-o", "wrong", "-q")
    assert (both.code, "there is a prompt template too" in both.err) == (2, True)


def test_the_model_writes_the_users_message(job: Path, capsys: Any) -> None:
    job.write_text(FILE.replace("prompt_template: ask.j2", "generate_role: user\n  system_column: persona"))
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 0
    rows = read("out")
    assert len({row["response"] for row in rows}) > 300
    for row in rows:
        said = [(turn["role"], turn["content"]) for turn in row["messages"]]
        assert said == [("system", row["persona"]), ("user", row["response"])]
    assert call(capsys, "verify", "out", "--rows", "-q").code == 0
    for kind, wanted in (
        ("sharegpt", {"from": "human", "value": rows[0]["response"]}),
        ("alpaca", rows[0]["response"]),
        ("csv", rows[0]["response"]),
    ):
        assert call(capsys, "export", "out", "--to", kind, "-o", f"out.{kind}").code == 0
        first = Path(f"out.{kind}").read_text().splitlines()[kind == "csv"]
        found = first if kind == "csv" else json.loads(first).get("output", [])
        assert wanted in (found or json.loads(first)["conversations"])
    shown = json.loads(call(capsys, "preview", "rows.yaml", "--rows", "1", "--json").out)
    assert json.dumps("<user>\n")[1:-1] in json.dumps(shown)
    assert "<assistant>" not in json.dumps(shown)
    asked = call(capsys, "run", "rows.yaml", "--prompt-template", "ask.j2", "-o", "wrong", "-q")
    assert (asked.code, "generate_role user asks nothing; omit --prompt-template" in asked.err) == (2, True)


QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = "{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}"


@pytest.mark.parametrize(
    ("prompt_format", "prompt"),
    [
        (ChatFormat(QWEN, {}), "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"),
        (ChatFormat(LLAMA2, {}), "[INST] Be kind. [/INST][INST]"),
        (SynthiaFormat(), "SYSTEM: Be kind.\nUSER:"),
        (SynthiaCardFormat(), "SYSTEM: Be kind. \nUSER: "),
        (PlainChatFormat(), "<system>\nBe kind.\n<user>\n"),
    ],
)
def test_the_prompt_ends_where_the_user_begins(prompt_format: Any, prompt: str) -> None:
    assert prompt_format.write([Message("system", "Be kind."), Message("user", "")]) == prompt


def test_reasoning_is_no_users_message(job: Path, demo_model: Path, capsys: Any) -> None:
    share_demo_model(demo_model, job.parent / "cache")
    Path("think.j2").write_text(QWEN.replace("assistant\n{%", "assistant\n<think>\n{%") + "{# </think> #}")
    flags = ("--model", "demo", "--chat-template", "think.j2", "--set", "input.generate_role=user")
    done = call(capsys, "plan", "rows://5", *flags)
    assert (done.code, "the chat template begins with reasoning" in done.err) == (2, True), done.err


def test_the_command_line_names_other_rows_or_another_input(job: Path, capsys: Any) -> None:
    assert call(capsys, "run", "rows.yaml", "-o", "whole", "-q").code == 0
    for name, arguments in (("typed", ("rows://30",)), ("set", ("--set", "input.rows=30"))):
        done = call(capsys, "run", "rows.yaml", *arguments, "-o", name, "-q")
        assert done.code == 0, done.err
        assert [row["persona"] for row in read(name)] == [row["persona"] for row in read("whole")[:30]]
    job.write_text(
        "input: {rows: 400, prompt_template: ask.j2}\nengine: {kind: scripted}\npool: {kind: local}\n"
    )
    Path("ask.j2").write_text("{{ persona }}")
    done = call(capsys, "run", "personas.jsonl", "rows.yaml", "-o", "file", "-q")
    assert done.code == 0, done.err
    assert len(read("file")) == 3
    planned = json.loads(call(capsys, "plan", "personas.jsonl", "rows.yaml", "--json").out)
    assert planned["settings"]["input.rows"] == {"value": None, "origin": "default"}


def test_no_more_rows_are_written_than_the_job_takes(job: Path, capsys: Any) -> None:
    done = call(capsys, "run", "rows://1G", "rows.yaml", "--limit", "10", "-o", "out", "-q")
    assert done.code == 0, done.err
    assert [row["id"] for row in read("out")] == [str(number) for number in range(10)]
    (copy,) = Path("cache").glob("**/rows.jsonl")
    assert len(copy.read_text().splitlines()) == 10
    assert call(capsys, "run", "rows://1G", "rows.yaml", "--limit", "10", "-o", "out", "-q").code == 0
    assert call(capsys, "run", "rows.yaml", "-o", "whole", "-q").code == 0
    assert [row["persona"] for row in read("whole")[:10]] == [row["persona"] for row in read("out")]


def test_failed_rows_that_ask_nothing_have_no_system_message_of_a_column(job: Path, capsys: Any) -> None:
    columns = "columns: {persona: {choice: [" + "long " * 60 + "]}}, system_column: persona"
    job.write_text(
        "input: {rows: 3, generate_role: user, " + columns + "}\nengine: {kind: scripted}\n"
        "pool: {kind: local}\nmodel: {max_model_len: 100}\n"
    )
    assert call(capsys, "run", "rows.yaml", "-o", "out", "-q").code == 3
    told = call(capsys, "failed", "out").err
    assert "failed/ does not have the system messages of rows that ask nothing: run the whole job" in told


def test_failed_rows_that_ask_nothing_are_run_with_the_flag_that_says_so(job: Path, capsys: Any) -> None:
    job.write_text("input: {rows: 3, generate_role: user}\nengine: {kind: scripted}\npool: {kind: local}\n")
    short = ("--set", "model.max_model_len=16", "-s", "A system message that is too long. " * 9)
    assert call(capsys, "run", "rows.yaml", *short, "-o", "out", "-q").code == 3
    told = call(capsys, "failed", "out").err
    advised = told.splitlines()[-1].partition("by themselves: ")[2]
    assert "--set input.generate_role=user" in advised
    words = shlex.split(advised.replace("TOKENS", "4096"))[1:]
    done = call(capsys, *words, "-s", "text:Short", "-o", "again")
    assert done.code == 0, done.err
    assert len(read("again")) == 3
