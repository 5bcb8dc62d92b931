"""Rows of a run's input are found by their index, as long as it is where it was."""

from pathlib import Path

import pytest
from conftest import write_jsonl
from inside import call

from synthia_batch.results.read.input_rows import InputRows
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.plan_file import require_plan

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-q", "-o", "out")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def open_rows() -> InputRows:
    run_dir = RunDir(Path("out"))
    return InputRows(run_dir, require_plan(run_dir))


def test_lines_count_what_is_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    Path("q.jsonl").write_text('{"question": "one?"}\n\n\n{"question": "two?"}\n')
    assert call(capsys, "run", "q.jsonl", *SCRIPTED).code == 0
    rows = open_rows()
    assert [rows.locate(index) for index in (1, 0, 2)] == ["q.jsonl:4", "q.jsonl:1", None]


def test_rows_far_apart_are_found_in_several_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    for name, first in (("a", 0), ("b", 1500)):
        rows = [{"question": f"What is {n}?"} for n in range(first, first + 1500)]
        write_jsonl(Path("in") / f"{name}.jsonl", rows)
    assert call(capsys, "run", "in", *SCRIPTED).code == 0
    wanted = {0, 1, 1499, 1500, 2999, 5000}
    found = open_rows().read(wanted)
    assert found.keys() == wanted - {5000}
    assert {row.messages[-1].content for row in found.values()} == {f"What is {n}?" for n in found}
    rows = open_rows()
    places = {index: rows.locate(index) for index in (2999, 0, 1500)}
    assert places == {2999: "b.jsonl:1500", 0: "a.jsonl:1", 1500: "b.jsonl:1"}
    assert rows.read(set()) == {}


@pytest.mark.parametrize("text", [None, "changed, and of another size", "What is 2?"])
def test_an_input_that_is_gone_or_changed_has_no_rows(
    text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(Path("q.jsonl"), [{"question": "What is 1?"}])
    assert call(capsys, "run", "q.jsonl", *SCRIPTED).code == 0
    assert (open_rows().locate(0), open_rows().read({0}).keys()) == ("q.jsonl:1", {0})
    path.unlink()
    if text is not None:
        write_jsonl(path, [{"question": text}])
    rows = open_rows()
    assert (rows.locate(0), rows.read({0})) == (None, {})
