"""Folders of .txt files: one row a file."""

import logging
from pathlib import Path
from typing import Any

import pytest
from conversion import read_paths
from inside import call

from synthia_batch.errors import InputRefused
from synthia_batch.inputs import resolve_inputs


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(autouse=True)
def _texts(_own_place: None) -> None:
    Path("texts/more").mkdir(parents=True)
    Path("texts/b.txt").write_bytes(b"\xef\xbb\xbfWhy?\r\nSo.\n")
    Path("texts/a.txt").write_text("{é}")
    Path("texts/more/c.TXT").write_text("How?")
    Path("texts/.hidden.txt").write_text("no row")


def test_each_file_is_a_row_with_its_name_as_id() -> None:
    rows = [(row.id, row.messages[0].content) for row in read_paths("texts")]
    assert rows == [("a.txt", "{é}"), ("b.txt", "Why?\r\nSo.\n"), ("more/c.TXT", "How?")]


def test_another_column_can_be_the_id() -> None:
    assert next(row.id for row in read_paths("texts", id_column="prompt")) == "{é}"


def test_names_are_part_of_what_the_input_is() -> None:
    (first,) = resolve_inputs(["texts"]).files
    Path("texts/a.txt").rename("texts/z.txt")
    (second,) = resolve_inputs(["texts"]).files
    assert first.digest != second.digest
    Path("texts/z.txt").rename("texts/a.txt")
    assert resolve_inputs(["texts"]).files[0].digest == first.digest


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b" \n", "texts/d.txt: the file is blank"),
        (b"a\xff", "texts/d.txt: not valid UTF-8, at byte 2"),
        (b"x" * 101, "texts/d.txt: the row is longer than 100 bytes"),
    ],
)
def test_a_faulty_file_is_refused_by_its_name(content: bytes, fault: str) -> None:
    Path("texts/d.txt").write_bytes(content)
    with pytest.raises(InputRefused) as refused:
        resolve_inputs(["texts"], max_row_bytes=100)
    assert fault in refused.value.faults[0]


def test_texts_beside_files_of_rows_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "synthia_batch")
    Path("texts/rows.jsonl").write_text('{"prompt": "A"}\n')
    assert [row.messages[0].content for row in read_paths("texts")] == ["A"]
    assert "texts: not read: a.txt, b.txt, more/c.TXT" in caplog.messages


def test_a_folder_runs_to_its_end_and_names_what_it_leaves_out(capsys: Any) -> None:
    Path("texts/README.md").write_text("none")
    run = ("run", "texts", "--engine", "scripted", "--pool", "local", "-q", "-o", "out")
    answer = call(capsys, *run)
    assert (answer.code, "texts: not read: README.md" in answer.err) == (0, True), answer
    assert "already complete" in call(capsys, *run).err
    assert call(capsys, "verify", "out", "-q").code == 0
