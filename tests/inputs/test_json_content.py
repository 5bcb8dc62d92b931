"""JSON is known by its content, whatever its name."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from synthia_batch.core.digest import open_digest_cache
from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs import Selection, digest_contents, digest_files, open_files, resolve_inputs

ROWS = [{"question": "What is é?"}, {"question": "Why?\n"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def read_questions(*paths: str) -> list[str]:
    source = open_files(resolve_inputs(paths).files)
    scan = source.scan(Selection(), Path.cwd())
    return [row.messages[0].content for row in source.read_rows(scan, 0, scan.rows)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", LINES),
        ("a.json", b"\xef\xbb\xbf\n" + LINES),
        ("a.json", LINES.replace(b"\n", b"\r\n")),
        ("a.json.gz", gzip.compress(LINES, mtime=0)),
        ("c4-train.00000-of-01024.json.gz", gzip.compress(LINES, mtime=0)),
        ("a.jsonl", LIST),
        ("a.jsonl.gz", gzip.compress(LIST, mtime=0)),
        ("a.ndjson", b"  " + json.dumps(ROWS).encode()),
        ("a.txt", LINES),
        ("a", LIST),
    ],
)
def test_lines_and_lists_are_read_under_any_name(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    assert read_questions(name) == [row["question"] for row in ROWS]


def test_a_line_longer_than_what_is_looked_at_is_a_line() -> None:
    rows = [{"question": "x" * 100_000}, {"question": "y"}]
    Path("a.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_questions("a.json") == ["x" * 100_000, "y"]


def test_lines_named_json_are_the_same_job_as_lines_named_jsonl() -> None:
    digests = set()
    for name, content in (
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.json.gz", gzip.compress(LINES, mtime=0)),
    ):
        Path(name).write_bytes(content)
        files = resolve_inputs([name]).files
        digests.add(digest_files(digest_contents(files, open_digest_cache())))
    assert len(digests) == 1


def test_a_directory_of_json_is_read_and_what_holds_no_rows_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "synthia_batch")
    folder = Path("data")
    (folder / "more").mkdir(parents=True)
    (folder / "a.json").write_bytes(LIST)
    (folder / "more" / "b.json.gz").write_bytes(gzip.compress(LINES, mtime=0))
    (folder / "config.json").write_text(json.dumps({"model": "x"}, indent=2))
    (folder / "dataset_info.json").write_text('{"features": {}}\n')
    (folder / "notes.md").write_text("none")
    assert read_questions("data") == [row["question"] for row in ROWS] * 2
    assert "data: not read: config.json, dataset_info.json, notes.md" in caplog.messages


def test_json_beside_files_of_rows_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "synthia_batch")
    Path("data").mkdir()
    Path("data/a.jsonl").write_bytes(LINES)
    Path("data/b.json").write_bytes(LIST)
    assert read_questions("data") == [row["question"] for row in ROWS]
    assert caplog.messages == ["data: not read: b.json"]


def test_a_directory_of_metadata_alone_is_refused_by_name() -> None:
    Path("data").mkdir()
    Path("data/dataset_infos.json").write_text("{}")
    Path("data/config.json").write_text('{\n"a": 1\n}')
    with pytest.raises(UsageError, match=r"no files of rows \(not read: config.json, dataset_infos.json\)"):
        resolve_inputs(["data"])


def test_a_damaged_file_in_a_directory_is_refused_and_not_left_out() -> None:
    Path("data").mkdir()
    Path("data/a.json").write_bytes(LIST)
    Path("data/b.json.gz").write_bytes(gzip.compress(LINES, mtime=0)[:12])
    with pytest.raises(InputRefused, match=r"b.json.gz: damaged or truncated gzip"):
        resolve_inputs(["data"])
