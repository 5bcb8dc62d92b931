"""Files of many samples: their bytes, the memory of their publication, and kills during it."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Command, write_jsonl
from harness import exhaustively

from synthia_batch.operations.disk_usage import TOKEN_BYTES, RunSize, estimate_publication_memory
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import read_ledger
from synthia_batch.storage.parts.columns import digest_file, read_part
from synthia_batch.storage.parts.row_digest import digest_rows

SCRIPT = Path(__file__).with_name("publish_large.py")
SAMPLES, CHARACTERS = 25_000, 200
"""Three row groups of finished samples."""


def call(directory: Path, samples: int, characters: int, what: str, kill_at: int = 0) -> tuple[int, str]:
    words = [str(word) for word in (SCRIPT, directory, samples, characters, what, kill_at)]
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout


def read_files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("characters", [1000, exhaustively(4000, "400 MB of answers in one file")])
@pytest.mark.timeout(600)
def test_100000_samples_are_published_in_a_file_within_1_gb(tmp_path: Path, characters: int) -> None:
    call(tmp_path, 100_000, characters, "fill")
    _, peak = call(tmp_path, 100_000, characters, "publish")
    size = RunSize(
        prompt_bytes=0, longest_output_tokens=int(1e5 * characters / TOKEN_BYTES), samples=100_000, shards=1
    )
    print(f"{int(peak) / 1e6:.0f} MB")
    assert int(peak) < 10**9
    assert int(peak) < estimate_publication_memory(size, 100_000)
    (path,) = (tmp_path / "data").iterdir()
    assert pq.read_metadata(path).num_rows == 100_000 - len(range(3, 100_000, 7))
    assert not list((tmp_path / ".synthia/journal").iterdir())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("filled") / "run"
    call(directory, SAMPLES, CHARACTERS, "fill")
    return directory


@pytest.fixture(scope="module")
def expected(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(filled, directory)
    call(directory, SAMPLES, CHARACTERS, "publish")
    return read_files(directory)


def test_a_part_of_several_row_groups_holds_the_rows_of_its_digest(
    expected: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "ledger").write_bytes(expected["intents.wal"])
    entry = read_ledger(tmp_path / "ledger", "beef").latest[0]
    for kind, part, groups in (
        ("train", entry.data, [10_000, 10_000, 1429]),
        ("failed", entry.failed, [3571]),
    ):
        path = tmp_path / kind
        path.write_bytes(expected[f"{kind}-00000-of-00001.parquet"])
        metadata = pq.read_metadata(path)
        assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == groups
        table = read_part(path)
        indexes = [n for n in range(SAMPLES) if (n % 7 == 3) is (kind == "failed")]
        assert table["row_index"].to_pylist() == indexes
        assert part is not None
        assert digest_rows(table.combine_chunks()) == digest_file(path) == part.rows_digest


@pytest.mark.parametrize(
    "kill_at",
    [3, 6, 9, 12, *(exhaustively(n, "a kill at every call") for n in (1, 2, 4, 5, 7, 8, 10, 11, 13))],
)
def test_a_kill_while_it_is_published_changes_no_byte(
    filled: Path, expected: dict[str, bytes], tmp_path: Path, kill_at: int
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(filled, directory)
    status, _ = call(directory, SAMPLES, CHARACTERS, "publish", kill_at)
    assert status == -signal.SIGKILL
    call(directory, SAMPLES, CHARACTERS, "publish")
    files = read_files(directory)
    parts = [name for name in expected if name.endswith(".parquet")]
    assert len(parts) == 2
    assert {name: files.get(name) for name in parts} == {name: expected[name] for name in parts}
    run_dir = RunDir(directory)
    assert read_ledger(run_dir.ledger, "beef").latest[0].parts


def test_files_have_the_samples_that_were_asked_for(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Number {n}?"} for n in range(25)])
    command = ("run", "q.jsonl", "--engine", "scripted", "--pool", "local", "-n", "2", "-o", "out")
    done = synthia(*command, "--samples-per-file", "21")
    assert done.returncode == 0, done.stderr
    rows = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out/data").iterdir())]
    assert rows == [20, 20, 10], "whole rows of two samples each"
    assert synthia("verify", "out").returncode == 0
    other = synthia(*command)
    assert other.returncode == 4
    assert "samples_per_file: 21 before" in other.stderr
