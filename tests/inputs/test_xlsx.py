"""Excel workbooks as input."""

import datetime
import gzip
import json
import logging
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from conversion import read_paths

from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs import resolve_inputs


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def make_book(**sheets: list[list[Any]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    sink = BytesIO()
    book.save(sink)
    return sink.getvalue()


def write(content: bytes, name: str = "a.xlsx") -> str:
    Path(name).write_bytes(content)
    return name


def list_faults(content: bytes) -> list[str]:
    with pytest.raises(InputRefused) as refused:
        resolve_inputs([write(content)])
    return list(refused.value.faults)


def test_rows_keep_their_values_and_the_numbers_of_the_sheet() -> None:
    rows = [
        ["id", "question", "n", "share", "good", "day"],
        [1, 'Why?\nSo; "this", é', 7, 0.5, True, datetime.datetime(2026, 7, 26, 8, 30)],
        [],
        [2, "How?"],
    ]
    keep = ("n", "share", "good", "day")
    for name, content in (("a.xlsx", make_book(Q=rows)), ("a.xlsx.gz", gzip.compress(make_book(Q=rows)))):
        first, second = read_paths(write(content, name), id_column="id", keep_columns=keep)
        assert (first.line, first.id, first.messages[0].content) == (2, "1", 'Why?\nSo; "this", é')
        assert first.kept == {"n": 7, "share": 0.5, "good": True, "day": "2026-07-26T08:30:00"}
        assert (second.line, second.id, second.messages[0].content) == (4, "2", "How?")
        assert second.kept == dict.fromkeys(keep)


def test_text_is_what_excel_shows() -> None:
    write(make_book(Q=[["question"], ["a_x000D_\nb _x005F_x000D_ snake_x"]]))
    assert [row.messages[0].content for row in read_paths("a.xlsx")] == ["a\r\nb _x000D_ snake_x"]


def test_the_first_sheet_is_read_and_the_others_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "synthia_batch")
    content = make_book(Prompts=[["question"], ["Why?"]], Notes=[["question"], ["No."]])
    assert [row.messages[0].content for row in read_paths(write(content))] == ["Why?"]
    assert "a.xlsx: reading the sheet 'Prompts'; not read: 'Notes'" in caplog.messages


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([["question", "question"], ["a", "b"]], "a.xlsx:1: the column 'question' appears twice"),
        (
            [["question", None, "x"], ["a", "b", "c"]],
            "a.xlsx:1: a column has no name; the first row must",
        ),
        ([["question"], ["a", "b"]], "a.xlsx:2: 2 cells, but the first row names 1 columns"),
        ([["question", "x"], ["a", "#REF!"]], "a.xlsx:2: the cell B2 has the error #REF!"),
        ([["question"]], "a.xlsx: there are no rows"),
        ([], "a.xlsx: there are no rows"),
    ],
)
def test_a_faulty_sheet_is_refused_by_its_row(rows: list[list[Any]], fault: str) -> None:
    assert fault in list_faults(make_book(Q=rows))[0]


def test_a_damaged_workbook_is_refused() -> None:
    content = make_book(Q=[["question"], ["Why?"]])
    for damaged in (content[:-200], b"PK\x03\x04", b"\xd0\xcf\x11\xe0" * 50):
        assert "a.xlsx: not a readable .xlsx workbook" in list_faults(damaged)[0]


def test_a_row_over_the_limit_is_refused() -> None:
    write(make_book(Q=[["question"], ["x" * 2000]]))
    with pytest.raises(InputRefused, match=r"a.xlsx:2: the row is longer than 1,000 bytes"):
        resolve_inputs(["a.xlsx"], max_row_bytes=1000)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    write(make_book(Q=[["question"], ["Why?"]]))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UsageError, match=r"needs the extra 'xlsx': pip install 'synthia-batch\[xlsx\]'"):
        resolve_inputs(["a.xlsx"])


def test_beside_csv_a_workbook_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "synthia_batch")
    Path("data").mkdir()
    Path("data/a.csv").write_text("question\nWhy?\n")
    write(make_book(Q=[["question"], ["Why?"]]), "data/a.xlsx")
    assert len(read_paths("data")) == 1
    assert "data: not read: a.xlsx" in caplog.messages
    Path("data/a.csv").unlink()
    assert json.dumps([row.messages[0].content for row in read_paths("data")]) == '["Why?"]'
