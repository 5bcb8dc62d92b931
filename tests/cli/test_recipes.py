"""Recipes: the shipped pipelines, written for an input of the user's."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write_jsonl
from inside import call

from synthia_batch.operations.recipes import list_recipes

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-q")


@pytest.mark.parametrize("name", [name for name in list_recipes() if name != "magpie"])
def test_a_recipe_is_written_for_the_users_input_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "mine.jsonl", [{"my text": f"What is {n} times two?"} for n in range(6)])
    done = call(capsys, "init", "data/mine.jsonl", "--recipe", name, "-o", "here/job.yaml")
    assert done.code == 2, "the directory is the user's to make"
    (tmp_path / "here").mkdir()
    done = call(capsys, "init", "data/mine.jsonl", "--recipe", name, "-o", "here/job.yaml")
    assert (done.code, done.out) == (0, "here/job.yaml\n")
    text = Path("here/job.yaml").read_text()
    assert "synthia-batch run here/job.yaml" in text
    assert "questions.jsonl" not in text
    run = call(capsys, "run", "here/job.yaml", *SCRIPTED, "-o", "out", "--json")
    assert run.code == 0, run.err
    first, *_, last = json.loads(run.out)["stages"]
    assert pq.read_table(Path(last["directory"], "data")).num_rows > 0
    asked = pq.read_table(Path(first["directory"], "data"))["messages"].to_pylist()
    assert all(any("times two?" in turn["content"] for turn in messages) for messages in asked)
    again = call(capsys, "init", "data/mine.jsonl", "--recipe", name, "-o", "here/job.yaml")
    assert (again.code, "already exists" in again.err) == (2, True)


def test_the_recipe_that_asks_nothing_takes_a_number_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(capsys, "init", "rows://30", "--recipe", "magpie")
    assert (done.code, done.out) == (0, "magpie.yaml\n")
    run = call(capsys, "run", "magpie.yaml", *SCRIPTED, "-o", "out", "--json")
    assert run.code == 0, run.err
    ask, distinct, answer = (
        pq.read_table(Path(stage["directory"], "data")).to_pylist() for stage in json.loads(run.out)["stages"]
    )
    assert (len(ask), len(distinct)) == (30, len(answer))
    assert [row["messages"][-2]["content"] for row in answer] == [row["ask"]["response"] for row in answer]
    for arguments, told in (
        (("rows://30", "--recipe", "judge"), "--recipe judge: expected rows of prompts, got numbers"),
        (("magpie.yaml", "--recipe", "magpie", "-o", "x.yaml"), "magpie.yaml"),
    ):
        done = call(capsys, "init", *arguments)
        assert (done.code, told in done.err) == (2, True), done.err
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "a"}])
    done = call(capsys, "init", "rows.jsonl", "--recipe", "magpie", "-o", "x.yaml")
    assert (done.code, "asks nothing of an input; name rows://1000" in done.err) == (2, True), done.err
    assert call(capsys, "init", "rows://30", "-o", "plain.yaml").code == 0
    assert call(capsys, "run", "plain.yaml", *SCRIPTED, "-o", "plain").code == 0


def test_what_a_recipe_cannot_be_written_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "turns.jsonl", [{"turns": ["a", "b"]}])
    write_jsonl(tmp_path / "rows.jsonl", [{"question": "a"}])
    for arguments, told in (
        (("rows.jsonl", "--recipe", "juge"), "--recipe juge: there is no such recipe; did you mean judge?"),
        (("rows.jsonl", "--recipe", "x"), "there are best-of-n, evol-instruct, judge, "),
        (("turns.jsonl", "--recipe", "judge"), "expected rows of prompts, got conversations, played turn by"),
        (("rows.jsonl", "--recipe", "judge", "-o", "-"), "a recipe has several files"),
    ):
        done = call(capsys, "init", *arguments)
        assert (done.code, told in done.err) == (2, True), done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "turns.jsonl"]
    (tmp_path / "score.json").write_text("mine")
    kept = call(capsys, "init", "rows.jsonl", "--recipe", "judge")
    assert (kept.code, "score.json: already exists" in kept.err) == (2, True)
    assert (tmp_path / "score.json").read_text() == "mine"


def test_the_docs_and_the_wheel_have_every_recipe() -> None:
    page = (ROOT / "docs" / "how-to" / "selection.md").read_text()
    assert [name for name in list_recipes() if f"| `{name}` |" not in page] == []
    assert '"jobs/pipelines" = "synthia_batch/recipes"' in (ROOT / "pyproject.toml").read_text()
