"""A complete run as the input of another: its samples are rows, its digest is part of the identity."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import call

ENGINE = ("--engine", "scripted", "--pool", "local", "-q")
ROWS = [{"id": "a/b", "question": "Hi", "topic": "x"}, {"id": "c", "question": "Ho", "topic": "y"}]


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    """A complete run named `answers`, of two rows, two system messages and two samples each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "answers.jsonl", ROWS)
    (tmp_path / "ask.j2").write_text("{{ topic }}: {{ answers.response }}")
    Path("brief.txt").write_text("Be brief.")
    assert run(capsys, "answers.jsonl", "-s", "none", "-s", "@brief.txt", "-n", "2", "-o", "first").code == 0
    return tmp_path / "first"


def run(capsys: Any, source: str, *options: str) -> Any:
    ids = ("--id-column", "id", "--keep-columns", "topic") if source == "answers.jsonl" else ()
    return call(capsys, "run", source, *ENGINE, *ids, *options)


def ask(capsys: Any, *options: str, source: str = "first", output: str = "second") -> Any:
    return run(capsys, source, "--prompt-template", "ask.j2", "-o", output, *options)


def read(directory: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(directory, "data")).to_pylist()
    return rows


def test_each_sample_is_a_row_with_its_kept_columns_and_all_others_under_the_jobs_name(
    first: Path, capsys: Any
) -> None:
    assert ask(capsys, "--keep-columns", "topic,answers").code == 0
    made, before = read("second"), read("first")
    assert [row["id"] for row in made] == [
        f"{row}/{system}/{number}"
        for row in ("a/b", "c")
        for system in ("none", "brief")
        for number in (0, 1)
    ]
    for row, sample in zip(made, before, strict=True):
        topic = sample.pop("topic")
        assert row["topic"] == topic
        assert row["answers"] == sample
        assert row["messages"][0] == {"role": "user", "content": f"{topic}: {sample['response']}"}


def test_an_id_has_only_what_tells_samples_apart(first: Path, capsys: Any) -> None:
    for options, ids in (((), ["a/b", "c"]), (("-n", "2"), ["a/b/0", "a/b/1", "c/0", "c/1"])):
        output = f"of {len(ids)}"
        assert run(capsys, "answers.jsonl", *options, "-o", output).code == 0
        assert ask(capsys, source=output, output=f"{output}, judged").code == 0
        assert [row["id"] for row in read(f"{output}, judged")] == ids


def test_what_was_answered_is_not_asked_again_unless_the_job_says_so(first: Path, capsys: Any) -> None:
    run(capsys, "answers.jsonl", "--keep-columns", "question,topic", "-o", "kept")
    refused = run(capsys, "kept", "-o", "second")
    assert refused.code == 2
    assert (
        "kept: say what is asked of a run's samples: --prompt-template FILE sees {{ id }}, {{ question }}, "
        "{{ topic }}, {{ answers }}; or name a column with --prompt-column or --messages-column"
    ) in refused.err
    assert run(capsys, "kept", "--prompt-column", "question", "-o", "second").code == 0
    assert [row["messages"][0]["content"] for row in read("second")] == ["Hi", "Ho"]


def test_a_run_that_is_not_complete_is_refused(first: Path, capsys: Any) -> None:
    (first / "manifest.json").unlink()
    refused = ask(capsys)
    assert refused.code == 2
    assert "first: the run is not complete, so its samples are no input yet" in refused.err
    assert "`synthia-batch status first`" in refused.err


def test_a_run_that_was_altered_is_refused(first: Path, capsys: Any) -> None:
    (part,) = (first / "data").iterdir()
    part.write_bytes(part.read_bytes() + b"x")
    refused = ask(capsys)
    assert refused.code == 2
    assert f"first/data/{part.name}: changed since the run was complete" in refused.err
    assert "`synthia-batch verify first --repair`" in refused.err
    part.unlink()
    assert f"first/data/{part.name}: cannot be read: No such file or directory" in ask(capsys).err
    manifest = json.loads((first / "manifest.json").read_text())
    (first / "manifest.json").write_text(json.dumps({**manifest, "finished": 3}))
    assert "manifest.json was altered" in ask(capsys).err


def test_failed_samples_are_no_rows_and_are_named(first: Path, capsys: Any) -> None:
    run(capsys, "answers.jsonl", "--set", "engine.fail_every=2", "-o", "half")
    done = call(capsys, "run", "half", *ENGINE[:-1], "--prompt-template", "ask.j2", "-o", "second")
    assert done.code == 0
    assert "half: 1 failed sample of the run: no rows; `synthia-batch retry half`" in done.err
    assert len(read("second")) == 1
    run(capsys, "answers.jsonl", "--set", "engine.fail_every=1", "-o", "none")
    refused = ask(capsys, source="none", output="third")
    assert refused.code == 2
    assert "none: all samples of the run failed: there are no rows" in refused.err


def test_a_moved_run_is_the_same_input_and_one_of_other_samples_is_not(first: Path, capsys: Any) -> None:
    assert ask(capsys).code == 0
    whole = {path.name: path.read_bytes() for path in Path("second/data").iterdir()}
    shutil.move("first", "moved")
    assert ask(capsys, source="moved").code == 0
    shutil.rmtree("cache")
    assert ask(capsys, source="moved", output="again").code == 0
    assert {path.name: path.read_bytes() for path in Path("again/data").iterdir()} == whole
    run(capsys, "answers.jsonl", "-s", "none", "-s", "@brief.txt", "-n", "2", "--seed", "7", "-o", "other")
    refused = ask(capsys, source="other")
    assert refused.code == 4
    assert "input.digest" in refused.err


def test_a_column_named_as_the_job_is_refused(first: Path, capsys: Any) -> None:
    write_jsonl(Path("topic.jsonl"), ROWS)
    call(capsys, "run", "topic.jsonl", *ENGINE, "--keep-columns", "topic", "-o", "twice")
    refused = ask(capsys, source="twice")
    assert refused.code == 2
    assert "twice: the run kept a column 'topic', which is also the name of its job" in refused.err
    assert "twice/data" in refused.err


def test_a_directory_of_several_runs_is_refused_and_not_mixed(first: Path, capsys: Any) -> None:
    first.rename(first.parent / "moved")
    (first.parent / "outputs").mkdir()
    (first.parent / "moved").rename(first.parent / "outputs" / "first")
    shutil.copytree("outputs/first", "outputs/other/second")
    refused = ask(capsys, source="outputs")
    assert refused.code == 2
    assert "outputs: holds runs, each an input of its own; name one: outputs/first, outputs/other/second" in (
        refused.err
    )
    assert ask(capsys, source="outputs/first").code == 0
