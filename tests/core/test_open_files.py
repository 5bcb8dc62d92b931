"""Files are opened for writing such that no planted link is followed."""

import os
import stat
from pathlib import Path

import pytest
from conftest import Command, write_jsonl

from synthia_batch.core.cache import KeptDirectory, replace_cached
from synthia_batch.core.files import create_file, make_private_directories, open_to_append
from synthia_batch.errors import StorageFailed
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.events import EventLog
from synthia_batch.storage.journal.append_file import AppendFile

PACKAGE = Path(__file__).parent.parent.parent / "synthia_batch"
IN_A_DIRECTORY_OF_ITS_OWN = {
    "inputs/fetch/normalize.py", "inputs/fetch/text_folder.py", "inputs/fetch/datasets_dir.py",
    "inputs/fetch/arrow.py", "inputs/fetch/numbered_rows.py", "inputs/remote/fetch.py",
    "inputs/records/hash_index.py", "core/cache.py",
    "models/gguf.py", "models/gguf_convert.py",
}  # fmt: skip
"""These write below a directory that `tempfile` has just created for this user alone."""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def test_a_new_file_replaces_a_link_and_follows_none(tmp_path: Path, victim: Path) -> None:
    for link in (tmp_path / "a", tmp_path / "b"):
        link.symlink_to(victim if link.name == "a" else tmp_path / "nowhere")
        os.close(create_file(link))
        assert not link.is_symlink()
    assert victim.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_log_that_is_a_link_is_refused(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        open_to_append(tmp_path / "log")
    assert victim.read_text() == "mine"


def test_no_durable_file_follows_a_planted_link(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".plan.json.tmp").symlink_to(victim)
    publish_bytes(tmp_path / "plan.json", b"plan")
    assert (tmp_path / "plan.json").read_bytes() == b"plan"
    (tmp_path / "events.jsonl").symlink_to(victim)
    with pytest.raises(StorageFailed, match="it is a symbolic link, which a run never makes: remove it"):
        EventLog.open(tmp_path / "events.jsonl", lambda: None)  # type: ignore[arg-type,return-value]
    (tmp_path / "x.wal").symlink_to(victim)
    with pytest.raises(StorageFailed, match="symbolic link"):
        AppendFile.open(tmp_path / "x.wal", kept_bytes=0)
    assert victim.read_text() == "mine"


def test_a_run_and_its_exports_follow_no_planted_link(synthia: Command, tmp_path: Path, victim: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    (tmp_path / "q.yaml").symlink_to(tmp_path / "nowhere")
    assert synthia("init", "q.jsonl").returncode == 0
    assert not (tmp_path / "q.yaml").is_symlink()
    job = ("q.jsonl", "--engine", "scripted", "--pool", "local", "-o", "out")
    hidden = tmp_path / "out/.synthia"
    assert synthia("run", *job).returncode == 0
    (tmp_path / "out/.report.html.tmp").symlink_to(victim)
    (tmp_path / ".y.csv.tmp").symlink_to(victim)
    assert synthia("report", "out").returncode == 0
    assert synthia("export", "out", "--to", "csv", "-o", "y.csv").returncode == 0
    (hidden / "events.jsonl").rename(hidden / "old")
    (hidden / "events.jsonl").symlink_to(victim)
    (hidden / ".owner.json.tmp").symlink_to(victim)
    (tmp_path / "out/manifest.json").unlink()
    refused = synthia("run", *job)
    assert (refused.returncode, "it is a symbolic link" in refused.stderr) == (74, True), refused.stderr
    assert victim.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_files_are_written_in_the_one_safe_way() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for line in path.read_text().splitlines():
            reads = "O_RDONLY" in line or '"rb"' in line or "devnull" in line or "O_RDWR" in line
            writes = any(f'"{mode}"' in line for mode in ("w", "wb", "a", "ab", "w+b"))
            calls = any(word in line for word in (".write_text(", ".write_bytes(", "FileHandler("))
            is_safe = "create_file(" in line or "open_to_append(" in line
            is_open = "os.open(" in line or (writes and ("open(" in line or "OSFile(" in line))
            if (calls or is_open) and not reads and not is_safe:
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found - IN_A_DIRECTORY_OF_ITS_OWN == {"core/files.py", "inputs/fetch/stdin.py"}, (
        "stdin.py writes to a file of tempfile.mkstemp"
    )


def test_caches_are_for_this_user_alone(tmp_path: Path) -> None:
    os.umask(0o022)
    (tmp_path / "shared").mkdir(mode=0o755)
    make_private_directories(tmp_path / "shared/a/b")
    replace_cached(tmp_path / "shared/c/d.json", b"{}")
    kept = KeptDirectory(path=tmp_path / "shared/e/f", what="a copy").prepare(lambda target: target.mkdir())
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "shared").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert kept.is_dir()
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o755, "what was there stays"
