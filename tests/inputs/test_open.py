"""From a path to a source: what is opened, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs import Selection, open_source


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "ROWS.JSONL"])
def test_jsonl_is_known_by_its_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"prompt": "a"}\n')
    assert type(open_source(tmp_path / name)).__name__ == "JsonlSource"


@pytest.mark.parametrize("name", ["rows.parquet", "rows", "rows.jsonl"])
def test_parquet_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    parquet.write_table(pa.table({"prompt": ["a"]}), tmp_path / name)
    source = open_source(tmp_path / name)
    assert source.scan(Selection(), tmp_path).rows == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.jsonl.gz"])
def test_any_other_file_is_refused_with_the_formats_there_are(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("prompt\na\n")
    with pytest.raises(UsageError, match=r"supported formats: JSONL .*, Parquet .*"):
        open_source(tmp_path / name)


def test_a_parquet_suffix_on_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(InputRefused, match="not a readable Parquet file"):
        open_source(path).scan(Selection(), tmp_path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_source(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match="got a directory"):
        open_source(tmp_path)
    with pytest.raises(UsageError, match="is not a path"):
        open_source(Path("a\0b.jsonl"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputRefused, match="the file is empty"):
        open_source(tmp_path / name)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UsageError, match="not a regular file"):
        open_source(tmp_path / "rows.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n')
    path.chmod(0)
    with pytest.raises(UsageError, match="cannot be read"):
        open_source(path)


def test_a_jsonl_job_does_not_load_pyarrow(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    script = (
        "import sys; from pathlib import Path; from synthia_batch.inputs import *\n"
        "assert 'numpy' not in sys.modules and 'pyarrow' not in sys.modules\n"
        "path = Path(sys.argv[1]); open_source(path).scan(Selection(), path.parent)\n"
        "assert 'pyarrow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "rows.jsonl"], check=True)
