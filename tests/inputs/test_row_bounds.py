"""No row of over 64 MiB, in any format, and no more memory than that while it is refused."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conversion import open_paths, read_paths
from inside import call
from pyarrow import parquet

from synthia_batch.errors import InputRefused
from synthia_batch.inputs.fetch.cache import find_copies

LIMIT = 1000
MIB = 2**20


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def make_table(texts: list[str], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"question": texts}), sink, **options)
    return bytes(sink.getvalue().to_pybytes())


def make_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"question": text}) + "\n" for text in texts).encode()


FORMS = {
    "a.jsonl": make_lines,
    "a.jsonl.gz": lambda texts: gzip.compress(make_lines(texts)),
    "a.json": lambda texts: json.dumps([{"question": text} for text in texts]).encode(),
    "a.csv": lambda texts: "\n".join(["question", *(f'"{text}"' for text in texts)]).encode(),
    "lines.csv": lambda texts: FORMS["a.csv"](texts).replace(b"xx", b"x\n"),
    "a.tsv.gz": lambda texts: gzip.compress("\n".join(["question", *texts]).encode()),
    "a.parquet": make_table,
    "plain.parquet": lambda texts: make_table(texts, use_dictionary=False, row_group_size=1),
    "a.parquet.gz": lambda texts: gzip.compress(make_table(texts)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_row_over_the_limit_is_refused_with_its_place_and_one_below_is_read(name: str) -> None:
    Path(name).write_bytes(FORMS[name](["short", "x" * (LIMIT - 100)]))
    assert len(read_paths(name, max_row_bytes=LIMIT)) == 2
    Path(name).write_bytes(FORMS[name](["short", "x" * 3 * LIMIT, "short"]))
    with pytest.raises(InputRefused, match=r"the row is longer than 1,000 bytes; --max-row-bytes") as refused:
        open_paths(name, max_row_bytes=LIMIT)
    (fault,) = refused.value.faults
    assert any(place in fault for place in (":2: ", ":3: ", ": row 2: ", "entry 2: ")), fault
    assert len(read_paths(name, max_row_bytes=4 * LIMIT)) == 3


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.csv", "a.parquet.gz"])
def test_what_is_refused_leaves_no_copy(name: str) -> None:
    for texts in (["short", "x" * 3 * LIMIT], ["short", " "]):
        Path(name).write_bytes(FORMS[name](texts))
        with pytest.raises(InputRefused):
            open_paths(name, max_row_bytes=LIMIT)
        assert not list(find_copies().glob("*/rows.*"))


def test_a_copy_that_another_run_may_read_stays() -> None:
    Path("a.csv").write_text("question,x\nWhy?,\n")
    read_paths("a.csv")
    with pytest.raises(InputRefused):
        open_paths("a.csv", prompt_column="x")
    assert len(list(find_copies().glob("*/rows.jsonl"))) == 1
    assert len(read_paths("a.csv")) == 1


def test_only_the_copy_with_the_fault_goes() -> None:
    Path("a.csv").write_text("question\nWhy?\n")
    Path("b.csv").write_text("question\n \n")
    with pytest.raises(InputRefused):
        open_paths("a.csv", "b.csv")
    assert len(list(find_copies().glob("*/rows.jsonl"))) == 1


def test_the_limit_is_a_flag_and_no_part_of_the_identity(capsys: Any) -> None:
    Path("a.jsonl").write_bytes(make_lines(["short", "x" * 3 * LIMIT]))
    run = ("run", "a.jsonl", "--engine", "scripted", "--pool", "local", "-q", "-o", "out")
    refused = call(capsys, *run, "--max-row-bytes", "1000")
    assert (refused.code, "a.jsonl:2: the row is longer than" in refused.err) == (2, True), refused
    assert call(capsys, *run, "--max-row-bytes", "4K").code == 0
    assert "already complete" in call(capsys, *run).err


def write_bomb(path: Path, mib: int) -> None:
    """Write a value of `mib` MiB that takes little room on disk."""
    if path.suffix == ".parquet":
        text = "x" * mib * MIB
        parquet.write_table(pa.table({"question": ["short", text, "short"]}), path, compression="zstd")
        return
    head, tail = {
        ".json": (b'[{"question": "a"}, {"question": "', b'"}]'),
        ".csv": (b'question,x\na,b\n"', b'",b\n'),
        ".jsonl": (b'{"question": "a"}\n{"question": "', b'"}\n'),
    }[Path(path.stem).suffix]
    with gzip.open(path, "wb", 1) as file:
        file.write(head)
        for _ in range(mib):
            file.write(b"x" * MIB)
        file.write(tail)


MEASURE = """
import sys
from pathlib import Path
from synthia_batch.errors import InputRefused
from synthia_batch.inputs import Selection, open_files, resolve_inputs
try:
    source = open_files(resolve_inputs([sys.argv[1]]).files)
    scan = source.scan(Selection(), Path.cwd())
    print(sum(1 for row in source.read_rows(scan, 0, scan.rows)))
except InputRefused as exc:
    print(exc.faults[0])
print(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024)
"""


def measure(path: Path) -> tuple[str, int]:
    """Return what reading the file says, and the most memory that it took, in MiB."""
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    said, peak = done.stdout.splitlines()
    return said, int(peak)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_row_of_half_a_gigabyte_takes_less(name: str, tmp_path: Path) -> None:
    write_bomb(Path(name), 512)
    said, peak_mib = measure(Path(name))
    assert "the row is longer than 64 MiB" in said
    assert peak_mib < 400
    assert not list(find_copies().glob("*/rows.*"))


def test_a_long_text_that_repeats_is_not_in_memory_for_each_row() -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["x" * MIB]))
    parquet.write_table(pa.table({"question": long}), "a.parquet", store_schema=False)
    assert Path("a.parquet").stat().st_size < MIB
    said, peak_mib = measure(Path("a.parquet"))
    assert said == "500"
    assert peak_mib < 800


def test_a_long_value_of_parquet_is_refused_by_its_row() -> None:
    write_bomb(Path("a.parquet"), 100)
    said, _ = measure(Path("a.parquet"))
    assert said == "a.parquet: row 2: the row is longer than 64 MiB; --max-row-bytes raises the limit"
