"""An input that changes while a job is resolved, scanned or run is noticed, whatever its size and times."""

import gzip
import os
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import read_bytes_of_data, write_jsonl

from synthia_batch import run_job
from synthia_batch.core.digest import open_digest_cache
from synthia_batch.core.types import InputFile
from synthia_batch.errors import InputRefused, IntegrityError
from synthia_batch.inputs import Selection, digest_contents, open_files, resolve_inputs
from synthia_batch.inputs.readers.file_source import CHECKED_ROWS
from synthia_batch.job.schema import Job
from synthia_batch.runner.directory import run_store

ROWS = [{"prompt": f"Number {n}?"} for n in range(9)]
FASTER_THAN_CLOCKS = 0.05
"""Seconds; the time stamps of files advance every few milliseconds."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "q.jsonl", ROWS)


def edit_in_place(path: Path, old: bytes = b"Number 8", new: bytes = b"Summer 8") -> None:
    """Change the content; inode, size and time of modification stay."""
    time.sleep(FASTER_THAN_CLOCKS)
    status = path.stat()
    content = path.read_bytes()
    assert old in content
    assert len(old) == len(new)
    with path.open("r+b") as file:
        file.write(content.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch_mode(path: Path) -> None:
    """Change what is no content."""
    time.sleep(FASTER_THAN_CLOCKS)
    path.chmod(0o640)


def make_job(path: Path, output: Path) -> Job:
    return Job.model_validate(
        {"input": {"path": path}, "engine": {"kind": "scripted"}, "pool": {"kind": "local"}, "output": output}
    )


def resolve(path: Path) -> tuple[InputFile, ...]:
    return digest_contents(resolve_inputs([str(path)]).files, open_digest_cache())


def test_an_edit_between_detection_and_digest_is_refused(source_file: Path) -> None:
    files = resolve_inputs([str(source_file)]).files
    edit_in_place(source_file)
    with pytest.raises(InputRefused, match=r"q\.jsonl: changed while it was read"):
        digest_contents(files, open_digest_cache())


def test_an_edit_between_digest_and_scan_is_refused(source_file: Path, tmp_path: Path) -> None:
    source = open_files(resolve(source_file))
    edit_in_place(source_file)
    with pytest.raises(InputRefused, match=r"q\.jsonl: changed since the job was resolved; run again"):
        source.scan(Selection(), tmp_path)


def test_a_row_read_after_an_edit_is_not_given_out(source_file: Path, tmp_path: Path) -> None:
    count = 3 * CHECKED_ROWS
    write_jsonl(source_file, [{"prompt": f"Number {n}?"} for n in range(count)])
    source = open_files(resolve(source_file))
    scan = source.scan(Selection(), tmp_path)
    rows = source.read_rows(scan, 0, count)
    assert next(rows).messages[0].content == "Number 0?"
    edit_in_place(source_file)
    read_before = [next(rows).messages[0].content for _ in range(CHECKED_ROWS - 1)]
    assert read_before == [f"Number {number}?" for number in range(1, CHECKED_ROWS)]
    with pytest.raises(IntegrityError, match=r"q\.jsonl: the input changed since the run began"):
        next(rows)


def test_a_new_mode_is_no_change(source_file: Path, tmp_path: Path) -> None:
    source = open_files(resolve(source_file))
    touch_mode(source_file)
    scan = source.scan(Selection(), tmp_path)
    touch_mode(source_file)
    source.check(scan)
    texts = [row.messages[0].content for row in source.read_rows(scan, 0, 9)]
    assert texts == [row["prompt"] for row in ROWS]


def test_each_of_several_files_is_looked_at(source_file: Path, tmp_path: Path) -> None:
    more = write_jsonl(tmp_path / "r.jsonl", [{"prompt": "Number 8 again?"}])
    files = digest_contents(resolve_inputs([str(source_file), str(more)]).files, open_digest_cache())
    source = open_files(files)
    scan = source.scan(Selection(), tmp_path)
    source.check(scan)
    edit_in_place(more)
    with pytest.raises(IntegrityError, match=r"r\.jsonl: the input changed"):
        source.check(scan)


def test_a_copy_is_not_kept_under_the_digest_of_other_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthia_batch.inputs.fetch import normalize

    path = tmp_path / "q.jsonl.gz"
    first, second = (gzip.compress(b'{"prompt": "%s?"}\n' % word, mtime=0) for word in (b"east", b"west"))
    path.write_bytes(first)
    inner = normalize.open_decompressed

    def edit_first(*arguments: Any) -> Any:
        path.write_bytes(second)
        return inner(*arguments)

    monkeypatch.setattr(normalize, "open_decompressed", edit_first)
    time.sleep(FASTER_THAN_CLOCKS)
    with pytest.raises(InputRefused, match=r"q\.jsonl\.gz: changed while it was read"):
        resolve_inputs([str(path)])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path.write_bytes(first)
    (file,) = resolve_inputs([str(path)]).files
    assert file.path.read_bytes() == b'{"prompt": "east?"}\n'


def test_a_run_whose_input_is_edited_ends_and_resumes_to_the_same_bytes(
    source_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(source_file, tmp_path / "out")
    before = source_file.read_bytes()
    inner = run_store.replay

    def edit_first(*arguments: Any) -> Any:
        edit_in_place(source_file)
        return inner(*arguments)

    monkeypatch.setattr(run_store, "replay", edit_first)
    with pytest.raises(IntegrityError, match="the input changed since the run began"):
        run_job(job)
    assert not list((tmp_path / "out" / "data").glob("*"))
    monkeypatch.setattr(run_store, "replay", inner)
    source_file.write_bytes(before)
    assert run_job(job).made == 0
    monkeypatch.chdir(tmp_path)
    other = job.model_copy(update={"output": tmp_path / "elsewhere" / "out"})
    run_job(other)
    assert read_bytes_of_data(tmp_path / "out") == read_bytes_of_data(tmp_path / "elsewhere" / "out")


def test_an_edit_after_the_last_publication_leaves_the_run_incomplete(
    source_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(source_file, tmp_path / "out")
    inner = run_store.publish_shard

    def edit_afterwards(*arguments: Any) -> Any:
        published = inner(*arguments)
        edit_in_place(source_file)
        return published

    monkeypatch.setattr(run_store, "publish_shard", edit_afterwards)
    with pytest.raises(IntegrityError, match="the input changed since the run began"):
        run_job(job)
    assert not (tmp_path / "out" / "manifest.json").exists()
