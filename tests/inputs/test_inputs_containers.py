"""Files, packed files, tables, directories, patterns and stdin: what they come to, what is refused where."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, write_jsonl
from inside import call

from synthia_batch.inputs.fetch.cache import KEPT_DAYS, drop_unused, find_copies, keep_copy

ENGINE = ("--engine", "scripted", "--pool", "local", "-q", "--max-tokens", "4")
ROWS = [{"id": f"row-{n}", "question": f"What is {n}?", "topic": "numbers"} for n in range(9)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def table(delimiter: str) -> bytes:
    lines = [delimiter.join(ROWS[0]), *(delimiter.join(row.values()) for row in ROWS)]
    return "\n".join(lines).encode()


FORMS: dict[str, Callable[[], bytes]] = {
    "rows.jsonl": TEXT.encode,
    "rows.jsonl.gz": lambda: gzip.compress(TEXT[:100].encode()) + gzip.compress(TEXT[100:].encode()),
    "rows.jsonl.zst": lambda: zstd(TEXT[:100].encode()) + zstd(TEXT[100:].encode()),
    "rows.parquet": lambda: parquet(ROWS),
    "rows.parquet.gz": lambda: gzip.compress(parquet(ROWS)),
    "rows.parquet.zst": lambda: zstd(parquet(ROWS)),
    "rows.csv": lambda: table(","),
    "rows.csv.gz": lambda: gzip.compress(b"\xef\xbb\xbf" + table(",").replace(b"\n", b"\r\n")),
    "rows.tsv": lambda: table("\t"),
    "rows.json": lambda: json.dumps(ROWS, indent=2).encode(),
    "rows.json.zst": lambda: zstd(json.dumps(ROWS).encode()),
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_rows(directory: Path, part: str = "data") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(directory / part).to_pylist()
    return rows


@pytest.mark.parametrize("name", FORMS)
def test_every_container_is_run_to_completion(synthia: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMS[name]())
    done = synthia("run", name, "--id-column", "id", "--keep-columns", "topic", "-o", "out", *ENGINE)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "out")
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS]
    assert [row["messages"][-2]["content"] for row in rows] == [row["question"] for row in ROWS]
    assert {row["topic"] for row in rows} == {"numbers"}
    assert synthia("verify", "out", "-q").returncode == 0
    again = synthia("run", name, "--id-column", "id", "--keep-columns", "topic", "-o", "out", *ENGINE)
    assert "already complete" in again.stderr


def test_packed_or_piped_in_the_same_rows_are_the_same_job(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marks = set()
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"):
        Path(name).write_bytes(FORMS[name]())
        plan = json.loads(call(capsys, "plan", name, "--json", *ENGINE[:-3]).out)
        marks.add((plan["fingerprint"], str(Path(plan["directory"]))))
    assert len(marks) == 1, marks
    piped = subprocess.run(
        command_of("plan", "-", "--json", *ENGINE[:-3]),
        input=TEXT.encode(), capture_output=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert json.loads(piped.stdout)["fingerprint"] == marks.pop()[0]


def make_tree(folder: Path) -> None:
    (folder / "more" / "deep").mkdir(parents=True)
    write_jsonl(folder / "a.jsonl", ROWS[:2])
    (folder / "more" / "b.jsonl.gz").write_bytes(
        gzip.compress("".join(f"\n{json.dumps(row)}\n" for row in ROWS[2:5]).encode())
    )
    (folder / "more" / "deep" / "c.parquet").write_bytes(parquet(ROWS[5:7]))
    (folder / "more" / "z.csv").write_bytes(
        b"id,question,topic\n" + b'x,"two\nlines",numbers\ny,Why?,numbers\n'
    )
    (folder / "more" / ".hidden.jsonl").write_text("no rows")
    (folder / "more" / "README.md").write_text("no rows")


def test_several_inputs_are_read_in_their_order_and_named_by_line(synthia: Command, tmp_path: Path) -> None:
    make_tree(tmp_path)
    job = (
        "more/deep", "a.jsonl", "more/*.[jc]*", "--id-column", "id", "--keep-columns", "topic",
        "--set", "engine.fail_every=1", "-n", "1", *ENGINE,
    )  # fmt: skip
    plan = synthia("plan", *[word for word in job if word != "-q"])
    assert plan.returncode == 0, plan.stderr
    names = [
        "more/deep/c.parquet (2 rows)",
        "a.jsonl (2 rows)",
        "more/b.jsonl.gz (3 rows)",
        "more/z.csv (2 rows)",
    ]
    assert [line.strip() for line in plan.stdout.splitlines() if "rows)" in line] == names
    done = synthia("run", *job, "-o", "out")
    assert done.returncode == 3, done.stderr
    failed = read_rows(tmp_path / "out", "failed")
    assert [(row["id"], row["source_file"], row["source_line"]) for row in failed] == [
        ("row-5", "more/deep/c.parquet", 1), ("row-6", "more/deep/c.parquet", 2), ("row-0", "a.jsonl", 1),
        ("row-1", "a.jsonl", 2), ("row-2", "more/b.jsonl.gz", 2), ("row-3", "more/b.jsonl.gz", 4),
        ("row-4", "more/b.jsonl.gz", 6), ("x", "more/z.csv", 2), ("y", "more/z.csv", 4),
    ]  # fmt: skip
    listed = synthia("failed", "out")
    assert "more/z.csv:4: scripted_failure" in listed.stdout, listed.stdout
    assert synthia("verify", "out", "-q").returncode == 0


def test_names_and_places_of_several_files_are_no_identity_and_their_order_is(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_tree(tmp_path)

    def mark(*paths: str) -> str:
        answer = call(capsys, "plan", *paths, "--json", *ENGINE[:-3])
        assert answer.code == 0, answer.err
        return str(json.loads(answer.out)["fingerprint"])

    first = mark("a.jsonl", "more/b.jsonl.gz")
    os.rename("a.jsonl", "more/other.jsonl")
    Path("b.jsonl").write_bytes(gzip.decompress(Path("more/b.jsonl.gz").read_bytes()))
    assert mark("more/other.jsonl", "b.jsonl") == first
    assert mark("b.jsonl", "more/other.jsonl") != first


def test_several_files_are_resumed_and_end_in_the_bytes_of_an_undisturbed_run(
    synthia: Command, tmp_path: Path
) -> None:
    for number in range(3):
        rows = [{"question": f"Say {number} {n}"} for n in range(700)]
        (tmp_path / f"{number}.jsonl.gz").write_bytes(
            gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        )
    job = ("[0-2].jsonl.gz", *ENGINE)
    assert synthia("run", *job, "-o", "whole").returncode == 0
    slow = ("run", *job, "-o", "out", "--set", "engine.latency_ms=30", "--set", "engine.max_num_seqs=4")
    process = subprocess.Popen(command_of(*slow), cwd=tmp_path, env=make_environment())
    journals = tmp_path / "out" / ".synthia" / "journal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(
        path.stat().st_size > 4000 for path in journals.glob("*.wal")
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = synthia("run", *job, "-o", "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["made_now"] < 2100
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "whole")


def test_what_was_piped_in_is_resumed_retried_and_missed_in_words(synthia: Command, tmp_path: Path) -> None:
    missing = tmp_path / "flag"
    fails = ("--set", "engine.fail_every=1", "--set", f"engine.fail_while_missing={missing}")
    job = ("run", "-", "-o", "out", *ENGINE, *fails)

    def pipe() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command_of(*job), input=TEXT.encode(), capture_output=True, cwd=tmp_path, check=False
        )

    first = pipe()
    assert first.returncode == 3, first.stderr
    assert b"kept as" in first.stderr
    missing.touch()
    retried = synthia("retry", "out", "-q")
    assert retried.returncode == 0, retried.stderr
    assert len(read_rows(tmp_path / "out")) == len(ROWS)
    assert b"already complete" in pipe().stderr
    (kept,) = find_copies().glob("stdin-*/stdin.jsonl")
    kept.unlink()
    lost = synthia("verify", "out", "--rerun", "2", "-q")
    assert lost.returncode == 2
    assert "the copy of the piped input is missing; pipe the same bytes in again" in lost.stderr
    assert b"already complete" in pipe().stderr
    assert synthia("verify", "out", "-q").returncode == 0
    kept.write_bytes(kept.read_bytes().replace(b"What", b"When", 1))
    damaged = synthia("verify", "out", "--rerun", "2", "-q")
    assert damaged.returncode == 2
    assert "the copy of the piped input is damaged; pipe the same bytes in again" in damaged.stderr
    assert b"already complete" in pipe().stderr


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(TEXT.encode()), "gz"),
        (parquet(ROWS), "parquet"),
        (table(","), "csv"),
        (TEXT.encode(), "jsonl"),
    ],
    ids=["gz", "parquet", "csv", "jsonl"],
)
def test_stdin_is_known_by_its_first_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    done = subprocess.run(
        command_of("validate", "-", *ENGINE[:-3]),
        input=content,
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith("stdin: 9 rows, no faults")


def pack(content: bytes) -> bytes:
    # Without the time: these are in the names of tests, which are the same in every process.
    return gzip.compress(content, mtime=0)


PACKED = pack(TEXT.encode())
REFUSED: list[tuple[str, bytes, str]] = [
    ("a.jsonl.gz", PACKED[:-20], "a.jsonl.gz: damaged or truncated gzip file"),
    ("a.jsonl.gz", TEXT.encode(), "a.jsonl.gz: expected a gzip file by its name, got other content"),
    ("a.jsonl.zst", zstd(TEXT.encode())[:-9], "a.jsonl.zst: damaged or truncated zstd file"),
    ("a.jsonl.zst", zstd(TEXT.encode())[:20] + b"\xff" * 30, "a.jsonl.zst: damaged or truncated zstd file"),
    ("a.jsonl.gz", pack(b'{"question": "a"}\n\n{"question": 1}\n'), "a.jsonl.gz:3: column"),
    ("a.parquet.gz", PACKED, "a.parquet.gz: not a readable Parquet file"),
    ("a.gz", pack(b"question\na\n"), "a.gz: unknown format"),
    ("a.csv", b"question\n\"a\n", "a.csv:2: the file ends inside a quoted field; the record"),
    ("a.csv", b'question\nb\n"a"b\n', "a.csv:3: not valid CSV: ',' expected after '\"'"),
    ("a.csv", b"question,b\na,b\n\na\n", "a.csv:4: expected 2 fields as in the first line, got 1, separa"),
    ("a.csv", b"question\na\n\xff\xfe\n", "a.csv:3: not valid UTF-8: byte 1 of the line is 0xff"),
    ("a.csv", b"question,question\na,b\n", "a.csv:1: the column 'question' appears twice"),
    ("a.csv", b"question,\na,b\n", "a.csv:1: a column has no name"),
    ("a.csv", b"question\n", "a.csv: there are no rows"),
    ("a.csv", b"question\nx\n  \n", "a.csv:3: column 'question' is blank"),
    ("a.csv", b"a;b\n1;2\n", "a.csv: none of the columns messages, turns, prompt"),
    ("a.json", b'"a"', "a.json: expected one JSON object on each line, or a list [{...}, {...}], got"),
    ("a.json", b'{\n"question": "a"}', "got an object that does not end on its first line; write"),
    ("a.jsonl", b'{\n"question": "a"\n}\n', "a.jsonl: expected one JSON object on each line, or a list"),
    ("a.jsonl", b'{"question": "a"\n', "a.jsonl:1: not valid JSON"),
    ("a.jsonl", b'[{"question": "a"}]\n[{"question": "b"}]\n', "a.jsonl: not a JSON list of objects: unex"),
    ("a.jsonl", b'["a"]\n["b"]\n', "a.jsonl:1: a line must be a JSON object, not an array"),
    ("a.json", b'[{"question": "a"}, {"question": ', "a.json: not a JSON list of objects"),
    ("a.json", b'[{"question": "a"} {"question": "b"}]', "a comma is missing between two entries"),
    ("a.json", b'[{"question": "a"}, 7]', "a.json:2: an entry of the list must be an object"),
    ("a.json", b'[{"question": "a"}, {"question": ""}]', "a.json:2: column 'question' is blank"),
    ("a.json", b"[]", "a.json: there are no rows"),
    ("a.jsonl.gz", b"", "a.jsonl.gz: the file is empty"),
    ("a.xls", b"PK\x03\x04", "a.xls: unknown format"),
    ("a.xlsx", b"PK\x03\x04", "a.xlsx: not a readable .xlsx workbook, damaged, or locked with a password"),
    ("a.txt", b"Why?\n", "If each file is a prompt, name their folder; if each line is one, write JSONL"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_what_is_refused_names_the_file_and_its_line(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    answer = call(capsys, "run", name, *ENGINE)
    assert answer.code == 2, answer
    assert message in answer.err
    faults = [line for line in answer.err.splitlines() if "reading a normalized copy" not in line]
    assert not any("cache" in line for line in faults), "it is the user's file that is at fault"
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nothing/*.jsonl"], "nothing/*.jsonl: no file matches"),
        (["empty"], "empty: the directory holds no files of rows"),
        (["a.jsonl", "./a.jsonl"], "a.jsonl: is named twice"),
        (["-", "-"], "-: stdin is named twice"),
        (["a.jsonl", "c.jsonl"], "c.jsonl:1: there is no 'question' in this row"),
        (["a.jsonl", "b.jsonl"], "b.jsonl:1: the id 'row-0' was used before, at a.jsonl:1"),
        (["ftp://x/a.jsonl"], "ftp://x/a.jsonl: expected an address with s3, gs, https, http or hf"),
    ],
)
def test_what_several_inputs_are_refused_for(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_jsonl(Path("a.jsonl"), ROWS[:2])
    write_jsonl(Path("b.jsonl"), ROWS[:1])
    write_jsonl(Path("c.jsonl"), [{"id": "c", "text": "another"}])
    answer = call(capsys, "run", *paths, "--prompt-column", "question", "--id-column", "id", *ENGINE)
    assert answer.code == 2, answer
    assert message in answer.err


def test_kept_columns_of_several_files_have_one_type(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), [{"question": "a", "n": 1}])
    write_jsonl(Path("b.jsonl"), [{"question": "b", "n": 0.5}])
    Path("c.parquet").write_bytes(parquet([{"question": "c", "n": "text"}]))
    keep = ("--keep-columns", "n", *ENGINE)
    assert call(capsys, "run", "a.jsonl", "b.jsonl", "-o", "out", *keep).code == 0
    assert [row["n"] for row in read_rows(Path("out"))] == [1.0, 0.5]
    mixed = call(capsys, "run", "a.jsonl", "c.parquet", *keep)
    assert (mixed.code, "a.jsonl: column 'n' is int64 here and string in c.parquet" in mixed.err) == (
        2,
        True,
    ), mixed


def test_an_input_that_changed_is_refused_with_its_directory(synthia: Command, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert synthia("run", "a.jsonl.gz", "-o", "out", *ENGINE).returncode == 0
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT.replace("What", "Who").encode()))
    changed = synthia("run", "a.jsonl.gz", "-o", "out", *ENGINE)
    assert changed.returncode == 4
    assert "input.digest" in changed.stderr


def test_a_kill_while_a_copy_is_made_leaves_none_that_is_not_whole(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"question": "x" * 1000 + str(n)}) + "\n" for n in range(60_000))
    (tmp_path / "big.jsonl.gz").write_bytes(gzip.compress(rows.encode(), 1))
    validate = command_of("validate", "big.jsonl.gz", *ENGINE[:-3])
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(validate, cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            if any(path.stat().st_size for path in find_copies().glob(".*/new/rows.jsonl")):
                process.kill()
                break
            time.sleep(0.002)
        process.wait()
        whole = [path for path in find_copies().glob("*/rows.jsonl") if not path.parent.name.startswith(".")]
        for path in whole:  # It was whole before it could be killed: that tells nothing.
            shutil.rmtree(path.parent)
        kills += not whole
        if kills == 4:
            break
    assert kills == 4
    done = subprocess.run(validate, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "big.jsonl.gz: 60,000 rows, no faults\n", done.stderr
    assert not list(find_copies().glob(".*")), "what killed processes left is gone"


def test_a_copy_that_was_damaged_is_made_again(synthia: Command, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert synthia("validate", "a.jsonl.gz", *ENGINE[:-3]).returncode == 0
    (kept,) = find_copies().glob("*/rows.jsonl")
    kept.write_text(TEXT[:50])
    done = synthia("validate", "a.jsonl.gz", *ENGINE[:-3])
    assert (done.returncode, done.stdout) == (0, "a.jsonl.gz: 9 rows, no faults\n"), done.stderr
    assert kept.read_text() == TEXT


def test_a_copy_goes_when_it_was_not_used_for_a_month() -> None:
    def build(target: Path) -> None:
        target.mkdir()
        (target / "rows.jsonl").write_text(TEXT)

    old, new = keep_copy("old", build), keep_copy("new", build)
    now = time.time()
    os.utime(old, (now, now - (KEPT_DAYS + 1) * 24 * 3600))
    assert drop_unused(now=now) == [old]
    assert new.exists()


def test_a_jsonl_job_still_loads_neither_arrow_nor_what_reads_addresses(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    script = (
        "import sys; from synthia_batch.inputs import resolve_inputs\n"
        "resolve_inputs([sys.argv[1]])\n"
        "heavy = {'pyarrow', 'numpy', 'obstore', 'huggingface_hub', 'jinja2', 'fsspec'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.jsonl"], check=True)
