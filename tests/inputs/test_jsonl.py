"""JSONL: its faults, its line ends, its checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
from reading import list_faults, read_all, scan

from synthia_batch.core.types import KeptColumn
from synthia_batch.errors import InputRefused, IntegrityError, UsageError
from synthia_batch.inputs import Scan, Selection
from synthia_batch.inputs.readers import jsonl as jsonl_module
from synthia_batch.inputs.readers.jsonl import JsonlSource

GOOD = b'{"prompt": "a"}\n'


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return path


def list_lines(path: Path, **selection: Any) -> list[str]:
    """The faults without the name of the file: "LINE: what"."""
    return [fault.removeprefix(f"{path}:") for fault in list_faults(path, **selection)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt": "a"', "not valid JSON: Expecting ',' delimiter, at column 15"),
        (b'{"prompt": "a"} x', "not valid JSON: Extra data, at column 17"),
        (b"{\"prompt\": 'a'}", "not valid JSON"),
        (b'{"prompt": "a\x01"}', "not valid JSON: Invalid control character"),
        (b'{"prompt": "\xff"}', "not valid UTF-8: byte 13 of the line is 0xff"),
        (b'{"prompt": "\xed\xa0\x80"}', "not valid UTF-8: byte 13"),
        (b'{"prompt": "\\ud83d"}', "column 'prompt' holds a lone surrogate (\\ud83d)"),
        (b'{"prompt": "a\\uDE00b"}', "lone surrogate"),
        (b'{"prompt": NaN}', "NaN is not a number"),
        (b'{"prompt": "a", "x": -Infinity}', "-Infinity is not a number"),
        (b'{"prompt": "a", "x": 1e999}', "larger than any"),
        (b'{"prompt": "a", "prompt": "b"}', "the name 'prompt' appears twice"),
        (b'{"prompt": "a", "x": {"y": 1, "y": 2}}', "the name 'y' appears twice"),
        (b'{"prompt": "a", "x": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"prompt": "a", "x": ' + b"[" * 101 + b"]" * 101 + b"}", "nested more than 100 deep"),
        (b"[" * 1_000_000, "nested more than 100 deep"),
        (b'{"a":' * 100_000, "nested more than 100 deep"),
        (b'["prompt"]', "must be a JSON object, not an array"),
        (b'"prompt"', "must be a JSON object, not a string"),
        (b"null", "must be a JSON object, not null"),
        (b"\x00", "not valid JSON"),
        (b'{"text": "a"}', "there is no 'prompt' in this row"),
        (b'{"prompt": ["a"]}', "must be a string, not an array"),
        (b'{"prompt": false}', "must be a string, not a boolean"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(tmp_path: Path, line: bytes, fault: str) -> None:
    (found,) = list_lines(write(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD))
    assert found.startswith("3: ")
    assert fault in found
    assert len(found) < 300
    found.encode()


def test_nesting_up_to_the_limit_is_read_and_read_again(tmp_path: Path) -> None:
    value = b"[" * 99 + b"]" * 99
    (row,) = read_all(write(tmp_path, b'{"prompt": "a", "x": ' + value + b"}"), keep_columns=("x",))
    assert json.dumps(row.kept["x"]).encode() == value


def test_many_brackets_that_are_not_deep_are_no_fault(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "[" * 500, "x": [[1]] * 500}).encode()
    assert scan(write(tmp_path, line)).rows == 1


def test_a_lone_surrogate_matters_only_where_it_is_used(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"prompt": "a \\ud83d\\ude00", "x": ["\\ud800"]}\n')
    assert read_all(path)[0].messages[0].content == "a \U0001f600"
    assert "column 'x'" in list_lines(path, keep_columns=("x",))[0]


def test_an_integer_of_over_64_bits_cannot_be_kept(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"prompt": "a", "x": 9223372036854775808}')
    assert scan(path).rows == 1
    assert "over 64 bits" in list_lines(path, keep_columns=("x",))[0]
    assert read_all(path, id_column="x")[0].id == "9223372036854775808"


@pytest.mark.parametrize("tail", [b'{"prompt": "b', b'{"prompt": "\xc3', b'{"prompt": "b"'])
def test_a_line_that_the_end_of_the_file_cuts_is_called_truncated(tmp_path: Path, tail: bytes) -> None:
    (found,) = list_lines(write(tmp_path, GOOD + tail))
    assert found.startswith("2: ")
    assert found.endswith("probably truncated")


def test_a_last_line_without_its_end_is_a_line(tmp_path: Path) -> None:
    assert scan(write(tmp_path, GOOD + b'{"prompt": "b"}')).rows == 2


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, b"\n \t\r\n" + GOOD + b"\n\n" + b'{"prompt": "b"}\r\n\n')
    assert [(row.index, row.line) for row in read_all(path)] == [(0, 3), (1, 6)]


@pytest.mark.parametrize("content", [b"\n", b" \r\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_of_blank_lines_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputRefused, match="there are no rows"):
        scan(write(tmp_path, content))


def test_a_byte_order_mark_is_passed_over_at_the_start_only(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    assert read_all(write(tmp_path, mark + GOOD))[0].messages[0].content == "a"
    assert list_lines(write(tmp_path, GOOD + mark + GOOD))[0].startswith("2: not valid JSON")


def test_utf_16_is_refused(tmp_path: Path) -> None:
    assert "not valid UTF-8: byte 1" in list_lines(write(tmp_path, '{"prompt": "a"}\n'.encode("utf-16")))[0]


def test_a_line_that_is_too_long_is_refused_and_passed_over(tmp_path: Path) -> None:
    def scan_short(content: bytes) -> Scan:
        return JsonlSource(write(tmp_path, content), max_row_bytes=32).scan(Selection(), tmp_path)

    long = b'{"prompt": "' + b"x" * 5_000_000 + b'"}\n'
    with pytest.raises(InputRefused) as refused:
        scan_short(GOOD + long + b"{\n" + long.rstrip())
    assert [fault.split(":")[1] for fault in refused.value.faults] == ["2", "3", "4"]
    assert "the row is longer than 32 bytes; --max-row-bytes raises the limit" in refused.value.faults[0]
    exactly = b'{"prompt": "' + b"x" * (32 - 15) + b'"}\n'
    assert len(exactly) == 32
    assert scan_short(exactly * 2 + exactly.rstrip()).rows == 3


def test_a_checkpoint_stands_at_every_thousandth_row(tmp_path: Path) -> None:
    path = write(tmp_path, b"\n" + GOOD * 1500 + b"\n" + GOOD * 1000)
    found = scan(path)
    places = [(checkpoint.offset, checkpoint.line) for checkpoint in found.checkpoints]
    assert places == [(1, 2), (1 + 16_000, 1002), (2 + 32_000, 2003)]
    rows = list(JsonlSource(path).read_rows(found, 2100, 2102))
    assert [(row.index, row.line) for row in rows] == [(2100, 2103), (2101, 2104)]


def test_reading_starts_at_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD * 5000)
    found = scan(path)
    seen: list[int] = []
    parse = jsonl_module.parse_line
    monkeypatch.setattr(jsonl_module, "parse_line", lambda line: (seen.append(line.number), parse(line))[1])
    assert len(list(JsonlSource(path).read_rows(found, 4010, 4020))) == 10
    assert seen == list(range(4011, 4021))


def test_a_checkpoint_that_is_no_start_of_a_line_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD * 2000)
    found = scan(path)
    path.write_bytes(b'{"prompt": "abc"}\n' + GOOD * 1998 + b'{"pro": "a"}\n\n')
    with pytest.raises(IntegrityError, match=r"rows\.jsonl.*no line starts at byte 16000"):
        list(JsonlSource(path).read_rows(found, 1000, 1001))


def test_a_kept_column_may_be_missing_in_a_row_but_not_in_all(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + b'{"prompt": "b", "tone": "x"}\n')
    source = JsonlSource(path)
    found = source.scan(Selection(keep_columns=("tone",), system_column="tone"), tmp_path)
    assert found.kept == (KeptColumn(name="tone", type="string"),)
    assert [row.kept["tone"] for row in source.read_rows(found, 0, 2)] == [None, "x"]
    with pytest.raises(UsageError, match="no column 'tune'"):
        scan(path, keep_columns=("tune",))
