"""Digests of files, and the cache that spares reading them again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from synthia_batch.core import digest as digest_module
from synthia_batch.core.digest import (
    DigestCache,
    canonical_json,
    digest_file,
    digest_json,
    open_digest_cache,
    read_stamp,
)
from synthia_batch.errors import UsageError

LATER = 1e12
"""Long after any file here was written: every file is settled."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 100_000)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache", read_clock=lambda: LATER)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read, in order."""
    seen: list[Path] = []

    class Counting:
        AUTO = blake3.AUTO

        def __init__(self, *data: bytes, **options: Any) -> None:
            self._inner = blake3(*data, **options)

        def update_mmap(self, path: Path) -> "Counting":
            seen.append(path)
            self._inner.update_mmap(path)
            return self

        def hexdigest(self, **options: Any) -> str:
            return self._inner.hexdigest(**options)

    monkeypatch.setattr(digest_module, "blake3", Counting)
    return seen


def test_the_digest_is_the_blake3_of_the_content(file: Path) -> None:
    assert digest_file(file, None) == blake3(file.read_bytes()).hexdigest()


def test_an_empty_file_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert digest_file(tmp_path / "empty", None) == blake3().hexdigest()


def test_a_second_digest_reads_nothing(file: Path, cache: DigestCache, reads: list[Path]) -> None:
    first = digest_file(file, cache)
    assert digest_file(file, cache) == first
    assert reads == [file]


def test_another_name_of_the_same_file_reads_nothing(
    file: Path, cache: DigestCache, reads: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(file)
    assert digest_file(file, cache) == digest_file(tmp_path / "link", cache)
    assert len(reads) == 1


def test_a_changed_file_is_read_again_even_with_its_old_size_and_mtime(
    file: Path, cache: DigestCache
) -> None:
    before = digest_file(file, cache)
    status = file.stat()
    file.write_bytes(b"abd" * 100_000)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_file(file, cache) != before


def test_a_file_of_the_last_two_seconds_is_not_trusted(file: Path, tmp_path: Path, reads: list[Path]) -> None:
    modified = file.stat().st_mtime
    fresh = DigestCache(tmp_path / "cache", read_clock=lambda: modified + 1.9)
    assert digest_file(file, fresh) == digest_file(file, fresh)
    assert len(reads) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', b"[" * 100_000, b"\xff"])
def test_a_damaged_entry_is_one_that_is_not_there(
    file: Path, cache: DigestCache, tmp_path: Path, damage: bytes
) -> None:
    right = digest_file(file, cache)
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(damage)
    assert digest_file(file, cache) == right
    assert json.loads(entry.read_bytes())["digest"] == right


def test_a_cache_that_cannot_be_written_is_no_error(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    cache = DigestCache(tmp_path / "cache", read_clock=lambda: LATER)
    assert digest_file(file, cache) == digest_file(file, None)


def test_the_cache_is_bounded(tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_module, "MAX_ENTRIES", 5)
    for number in range(20):
        path = tmp_path / f"file-{number}"
        path.write_text(str(number))
        digest_file(path, cache)
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_two_processes_can_share_the_cache(file: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from synthia_batch.core.digest import DigestCache, digest_file\n"
        "cache = DigestCache(Path(sys.argv[2]), read_clock=lambda: 1e12)\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()) * 20:\n"
        "    print(digest_file(path, cache))\n"
    )
    many = tmp_path / "many"
    many.mkdir()
    for number in range(10):
        (many / str(number)).write_text(str(number))
    command = [sys.executable, "-c", script, str(many), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    expected = [blake3(str(number).encode()).hexdigest() for number in range(10)] * 20
    assert outputs == [expected, expected]
    assert not list((tmp_path / "cache").glob(".new-*"))


def test_a_missing_file_is_a_usage_error(tmp_path: Path, cache: DigestCache) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        digest_file(tmp_path / "nothing", cache)
    with pytest.raises(UsageError, match="cannot be read"):
        digest_file(tmp_path, cache)


def test_the_users_cache_follows_xdg_cache_home(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(file, (0, 0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache = open_digest_cache()
    stamp = read_stamp(file)
    # The change time is now; a stamp made settled by hand shows where the entry goes.
    settled = type(stamp)(device=1, inode=1, size=1, mtime_ns=1, ctime_ns=1)
    cache.remember(file, settled, "0" * 64)
    assert len(list((tmp_path / "xdg" / "synthia-batch" / "digests").iterdir())) == 1
    assert cache.find(file, settled) == "0" * 64


def test_canonical_json_has_one_text_per_value() -> None:
    assert canonical_json({"b": 1, "a": ["é", None]}) == '{"a":["é",null],"b":1}'.encode()
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_hold_has_no_canonical_text(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_json([value])
