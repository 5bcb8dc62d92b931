"""A run keeps its job with absolute paths: retry, verify --rerun and run_job work from any directory."""

from pathlib import Path
from typing import Any

import pytest
from conftest import read_bytes_of_data, write_jsonl
from inside import call

from synthia_batch import open_run, run_job
from synthia_batch.storage.layout import RunDir

FILES = {
    "schema.json": '{"type": "object", "properties": {"a": {"type": "integer"}}}',
    "ask.jinja": "Ask: {{ question }}",
    "persona.txt": "You are terse.",
    "chat.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
FLAGS = (
    "--engine", "scripted", "--pool", "local", "-q", "--json-schema", "schema.json",
    "--prompt-template", "ask.jinja", "-s", "@persona.txt", "--chat-template", "chat.jinja",
    "--set", "engine.call_log=calls", "--set", "engine.fail_every=5",
    "--set", "engine.fail_while_missing=mended", "-o", "out",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    """Return a complete run with failures, made in one directory; the test runs in another."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    write_jsonl(home / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(30)])
    for name, text in FILES.items():
        (home / name).write_text(text)
    monkeypatch.chdir(home)
    assert call(capsys, "run", "q.jsonl", *FLAGS).code == 0
    monkeypatch.chdir(elsewhere)
    return home / "out"


def test_retry_works_from_another_directory(run: Path, capsys: Any) -> None:
    (run.parent / "mended").touch()
    answer = call(capsys, "retry", str(run), "-q")
    assert answer.code == 0, answer
    assert len(list(open_run(run).samples())) == 30


def test_verify_with_rerun_works_from_another_directory(run: Path, capsys: Any) -> None:
    answer = call(capsys, "verify", str(run), "--rerun", "2")
    assert answer.code == 0, answer


def test_the_job_of_a_run_can_be_run_from_another_directory(run: Path) -> None:
    before = read_bytes_of_data(run)
    assert run_job(open_run(run).job).directory == run
    RunDir(run).manifest.unlink()
    assert run_job(open_run(run).job).directory == run
    assert read_bytes_of_data(run) == before


def test_a_grammar_is_found_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    (tmp_path / "yes.gbnf").write_text('root ::= "yes"')
    monkeypatch.chdir(tmp_path)
    flags = ("--engine", "scripted", "--pool", "local", "-q", "--grammar", "yes.gbnf", "-o", "out")
    call(capsys, "run", "q.jsonl", *flags)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "cannot be read" not in call(capsys, "retry", str(tmp_path / "out"), "-q").err
    assert Path(open_run(tmp_path / "out").job.structured.grammar or "").is_absolute()
