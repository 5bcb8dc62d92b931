"""Rows that cannot be asked: refused with the whole input, or failed one by one."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_jsonl
from inside import call

ENGINE = ("--engine", "scripted", "--pool", "local", "-q")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(directory: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory).to_pylist()
    return rows


LINES = [
    b'{"id": "a", "prompt": "Why?"}',
    b'{"id": "b", "prompt": " "}',
    b'{"id": "c", "prompt": NaN}',
    b'{"id": "d", "prompt": "\xff"}',
    b'{"id": "e", "prompt": "\\ud800"}',
    b'{"id": "f"',
    b'{"id": "g"}',
    b'{"id": "h", "prompt": "How?"}',
]
FAULTS = {
    2: "column 'prompt' is blank",
    3: "not valid JSON: NaN is not a number",
    4: "not valid UTF-8",
    5: "holds a lone surrogate",
    6: "not valid JSON",
    7: "there is no 'prompt' in this row",
}


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        (("--id-column", "id"), ["b", "bad-row-3", "bad-row-4", "e", "bad-row-6", "g"]),
        ((), None),
    ],
)
def test_bad_lines_fail_with_their_place_and_the_others_are_generated(
    capsys: Any, flags: tuple[str, ...], ids: list[str] | None
) -> None:
    Path("q.jsonl").write_bytes(b"\n".join(LINES) + b"\n")
    job = ("run", "q.jsonl", "-o", "out", *flags, *ENGINE)
    refused = call(capsys, *job)
    assert refused.code == 2
    assert refused.err.count("  q.jsonl:") == len(FAULTS)
    answer = call(capsys, *job, "--on-bad-row", "fail")
    assert answer.code == 0, answer.err
    assert "6 of 8 rows cannot be asked and go to failed/ (bad_row), such as q.jsonl:2: column" in answer.err
    assert [row["row_index"] for row in read("out/data")] == [0, 7]
    failed = read("out/failed")
    assert [(row["code"], row["source_line"]) for row in failed] == [("bad_row", line) for line in FAULTS]
    for row in failed:
        assert FAULTS[row["source_line"]] in row["message"]
        assert row["messages"] == []
    assert ids is None or [row["id"] for row in failed] == ids
    assert len({row["id"] for row in failed}) == len(failed)
    assert call(capsys, "verify", "out", "-q").code == 0


def test_bad_rows_of_parquet_fail_too(capsys: Any) -> None:
    table = pa.table({"id": ["a", "b", None, "d"], "prompt": ["Why?", None, "x", "How?"]})
    pq.write_table(table, "q.parquet")
    flags = ("--id-column", "id", "--keep-columns", "id", "--on-bad-row", "fail")
    answer = call(capsys, "run", "q.parquet", "-o", "out", *flags, *ENGINE)
    assert answer.code == 0, answer.err
    assert [row["id"] for row in read("out/data")] == ["a", "d"]
    assert [(row["id"], row["source_line"]) for row in read("out/failed")] == [("b", 2), ("bad-row-3", 3)]


def test_a_value_of_parquet_that_is_no_text_fails_alone(capsys: Any) -> None:
    texts = pa.array([b"Why?", b"\xff", b"How?"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": texts}), "q.parquet")
    answer = call(capsys, "run", "q.parquet", "-o", "out", "--on-bad-row", "fail", *ENGINE)
    assert answer.code == 0, answer.err
    assert [row["row_index"] for row in read("out/data")] == [0, 2]
    assert [row["row_index"] for row in read("out/failed")] == [1]


def test_requests_that_cannot_be_honoured_come_back_as_errors(capsys: Any) -> None:
    def request(number: int, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Why?"}]
        return {"custom_id": f"r-{number}", "url": url, "body": {"model": "m", "messages": messages, **body}}

    requests = [
        request(1),
        request(2, model="other"),
        request(3, url="/v1/embeddings"),
        request(4, echo=True),
    ]
    write_jsonl(Path("b.jsonl"), requests)
    answer = call(capsys, "run", "b.jsonl", "-o", "out", "--on-bad-row", "fail", *ENGINE)
    assert answer.code == 0, answer.err
    exported = call(capsys, "export", "out", "--to", "openai-batch").out
    lines = {line["custom_id"]: line for line in map(json.loads, exported.splitlines())}
    assert list(lines) == ["r-1", "r-2", "r-3", "r-4"]
    assert lines["r-1"]["error"] is None
    for name, text in (("r-2", "the model of the first"), ("r-3", "the url must be"), ("r-4", "sets echo")):
        assert lines[name]["response"] is None
        assert text in lines[name]["error"]["message"]


def test_other_commands_take_bad_rows_as_they_are(capsys: Any) -> None:
    Path("q.jsonl").write_bytes(b"\n".join(LINES) + b"\n")
    flags = ("q.jsonl", "--on-bad-row", "fail", "--engine", "scripted", "--pool", "local")
    shown = call(capsys, "preview", *flags, "-n", "2")
    assert shown.code == 0, shown.err
    assert "[will fail: bad_row: column 'prompt' is blank]" in shown.out
    assert call(capsys, "plan", *flags).code == 0


def test_a_column_is_kept_under_another_name(capsys: Any) -> None:
    rows = [{"prompt": "Why?", "response": "Because.", "n": 1}, {"prompt": "How?", "response": None, "n": 2}]
    write_jsonl(Path("q.jsonl"), rows)
    pq.write_table(pa.Table.from_pylist(rows), "q.parquet")
    keep = ("--keep-columns", "response,n")
    refused = call(capsys, "run", "q.jsonl", *keep, *ENGINE)
    assert refused.code == 2
    assert "column 'response' cannot be kept" in refused.err
    assert "--rename-column response=NEW_NAME" in refused.err
    for name in ("q.jsonl", "q.parquet"):
        out = name.replace(".", "-")
        answer = call(capsys, "run", name, "-o", out, *keep, "--rename-column", "response=gold", *ENGINE)
        assert answer.code == 0, answer.err
        assert [(row["gold"], row["n"]) for row in read(f"{out}/data")] == [("Because.", 1), (None, 2)]
    unkept = call(capsys, "run", "q.jsonl", "--rename-column", "response=gold", *ENGINE)
    assert unkept.code == 2
    assert "--rename-column response: it is not kept; add it to --keep-columns" in unkept.err
    clash = call(capsys, "run", "q.jsonl", *keep, "--rename-column", "response=seed", *ENGINE)
    assert clash.code == 2
    assert "column 'seed' cannot be kept" in clash.err


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_bad_rows_without_an_id_in_the_same_line_of_several_files_are_several(
    capsys: Any, suffix: str
) -> None:
    for number in range(3):
        rows = [{"id": f"good-{number}", "prompt": "Why?"}, {"id": None, "prompt": "How?"}]
        write_jsonl(Path(f"{number}.jsonl"), rows)
        pq.write_table(pa.Table.from_pylist(rows), f"{number}.parquet")
    names = [f"{number}.{suffix}" for number in range(3)]
    flags = ("--id-column", "id", "--on-bad-row", "fail", "-o", "out")
    answer = call(capsys, "run", *names, *flags, *ENGINE)
    assert answer.code == 0, answer.err
    failed = read("out/failed")
    assert [row["id"] for row in failed] == ["bad-row-2", "bad-row-2-1", "bad-row-2-2"]
    assert [row["source_file"] for row in failed] == names
    assert call(capsys, "verify", "out", "-q").code == 0


def test_bad_rows_with_the_same_id_are_duplicates(capsys: Any) -> None:
    write_jsonl(Path("q.jsonl"), [{"id": "a", "prompt": " "}, {"id": "a", "prompt": ""}])
    answer = call(capsys, "run", "q.jsonl", "--id-column", "id", "--on-bad-row", "fail", *ENGINE)
    assert answer.code == 2
    assert "q.jsonl:2: the id 'a' was used before, at q.jsonl:1" in answer.err


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz", "q.parquet"])
def test_a_row_over_the_limit_fails_and_the_limit_is_identity(capsys: Any, name: str) -> None:
    rows = [{"prompt": "Why?"}, {"prompt": "x" * 5000}, {"prompt": "How?"}]
    write_jsonl(Path("q.jsonl"), rows)
    Path("q.jsonl.gz").write_bytes(gzip.compress(Path("q.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), "q.parquet", use_dictionary=False)
    job = ("run", name, "-o", "out", "--max-row-bytes", "2000", *ENGINE)
    refused = call(capsys, *job)
    assert refused.code == 2
    assert "the row is longer than 2,000 bytes; --max-row-bytes" in refused.err
    answer = call(capsys, *job, "--on-bad-row", "fail")
    assert answer.code == 0, answer.err
    assert [row["row_index"] for row in read("out/data")] == [0, 2]
    (row,) = read("out/failed")
    assert (row["code"], row["source_line"]) == ("bad_row", 2)
    assert "the row is longer than 2,000 bytes" in row["message"]
    assert "the row is longer" in call(capsys, "failed", "out").out
    assert call(capsys, "verify", "out", "-q").code == 0
    other = call(capsys, "run", name, "-o", "out", "--on-bad-row", "fail", *ENGINE)
    assert other.code == 4
    assert "max_row_bytes" in other.err
