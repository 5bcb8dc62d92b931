"""CSV as spreadsheets write it: separators, encodings, quotes and line breaks in cells."""

import gzip
import logging
from pathlib import Path

import pytest
from conversion import read_paths

from synthia_batch.errors import InputRefused


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def read(content: bytes, name: str = "a.csv") -> list[tuple[int, str, str]]:
    """Return the line, the question and the column `x` of each row."""
    Path(name).write_bytes(content)
    rows = read_paths(name, prompt_column="question", keep_columns=("x",))
    return [(row.line, row.messages[0].content, row.kept["x"]) for row in rows]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"question;x\nWhy?;1,5\nHow, then?;2,5\n", [(2, "Why?", "1,5"), (3, "How, then?", "2,5")]),
        (b"question\tx\nWhy; and how?\t1\n", [(2, "Why; and how?", "1")]),
        (b"question|x\nWhy?|1\n", [(2, "Why?", "1")]),
        (b"question,x\nWhy; how; when?,1\n", [(2, "Why; how; when?", "1")]),
        (b"sep=;\r\nquestion;x\r\nWhy?;1\r\n", [(3, "Why?", "1")]),
        (b'"x";"question"\r\n"1";"Why ""so""?\nAnd; how, \t"\r\n', [(2, 'Why "so"?\nAnd; how, \t', "1")]),
        (b'question;x\n"a\n\nb";1\nc;2\n', [(2, "a\n\nb", "1"), (5, "c", "2")]),
        (b'question;x\n5" pipe;1\n', [(2, '5" pipe', "1")]),
        ("\ufeffquestion;x\nGrüße?;1\n".encode(), [(2, "Grüße?", "1")]),
        (b'question;x\n"' + b"long, " * 20_000 + b'";1\n', [(2, "long, " * 20_000, "1")]),
        (b"x;question, in full;question\n1;a;b\n", [(2, "b", "1")]),
    ],
)  # fmt: skip
def test_the_separator_is_found(content: bytes, rows: list[tuple[int, str, str]]) -> None:
    assert read(content) == rows
    assert read(gzip.compress(content), "b.csv.gz") == rows


def test_a_column_alone_may_have_other_separators_in_its_texts() -> None:
    Path("a.csv").write_bytes(b"question\nWhy; how?\nWhen?\n")
    assert [row.messages[0].content for row in read_paths("a.csv")] == ["Why; how?", "When?"]


def test_a_separator_other_than_a_comma_is_told_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "synthia_batch")
    for _ in range(2):
        caplog.clear()
        read(b"question;x\na;b\n")
        assert "a.csv: the fields are separated by semicolons" in caplog.messages
    caplog.clear()
    read(b"question,x\na,b\n")
    assert not any("separated" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            b"question;x\na;b\nc\n",
            "a.csv:3: expected 2 fields as in the first line, got 1, separated by semi",
        ),
        (
            "question,x\nGrüße?,1\n".encode("cp1252"),
            "as Windows text it is 'Grüße?,1': if that is right",
        ),
        ("question,x\nGrüße?,1\n".encode("utf-16"), "a.csv:1: the file is UTF-16; save it as UTF-8"),
        (b'question;x\n"a;b\n', "a.csv:2: the file ends inside a quoted field; the record begins on line 2"),
        (b"question;x\na;b;\n", "got 3, separated by semicolons"),
    ],
)
def test_what_is_refused_names_the_separator_or_the_encoding(content: bytes, fault: str) -> None:
    with pytest.raises(InputRefused) as refused:
        read(content)
    assert fault in refused.value.faults[0]


def test_cp1252_reads_after_the_conversion_that_is_named() -> None:
    text = "question,x\nGrüße – “so”?,1\n"
    assert read(text.encode("cp1252").decode("cp1252").encode()) == [(2, "Grüße – “so”?", "1")]
