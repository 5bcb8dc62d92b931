"""The primitives and the small files: paths, plan, manifest, events."""

import errno
import json
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from synthia_batch.core.types import Shard
from synthia_batch.errors import IdentityMismatch, IntegrityError, StorageFailed
from synthia_batch.storage import atomic
from synthia_batch.storage.events import EventLog, read_events
from synthia_batch.storage.journal.append_file import AppendFile
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import read_boot_id
from synthia_batch.storage.manifest import Manifest, ManifestPart, read_manifest, write_manifest
from synthia_batch.storage.plan_file import plan_digest, read_plan, write_plan_once

PLAN = {"version": 1, "model": {"name": "demo", "temperature": 0.75}, "text": "naïve 🙂"}
MANIFEST = Manifest(
    plan_digest="c0ffee",
    fingerprint="decaf",
    rows=10,
    samples=20,
    finished=19,
    failed=1,
    parts=(
        ManifestPart(
            path="data/train-00000-of-00001.parquet", sha256="ab", bytes=9, rows=19, rows_digest="ef"
        ),
    ),
)


def fail_with(code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    return fail


def test_every_path_is_as_the_design_names_it(tmp_path):
    run_dir = RunDir(tmp_path)
    shard = Shard(number=7, count=60, first_row=0, stop_row=1, first=0, stop=1)
    paths = {
        "README.md": run_dir.readme,
        "report.html": run_dir.report,
        "manifest.json": run_dir.manifest,
        "data/train-00007-of-00060.parquet": run_dir.data_part(shard),
        "failed/failed-00007-of-00060.parquet": run_dir.failed_part(shard),
        ".synthia/plan.json": run_dir.plan,
        ".synthia/lock": run_dir.lock,
        ".synthia/owner.json": run_dir.owner,
        ".synthia/intents.wal": run_dir.ledger,
        ".synthia/events.jsonl": run_dir.events,
        ".synthia/journal/shard-00007.wal": run_dir.journal(shard),
        ".synthia/logs/worker-0.log": run_dir.worker_log(0),
    }

    assert {name: path.relative_to(tmp_path).as_posix() for name, path in paths.items()} == {
        name: name for name in paths
    }


def test_a_run_directory_is_made_once_and_again_with_all_above_it(tmp_path):
    run_dir = RunDir(tmp_path / "outputs" / "deep" / "run")

    run_dir.create()
    run_dir.create()

    assert run_dir.data.is_dir()
    assert run_dir.journals.is_dir()
    assert run_dir.logs.is_dir()
    assert not run_dir.failed.exists()


def test_a_published_file_is_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "file"

    atomic.publish_bytes(path, b"old")
    atomic.publish_bytes(path, b"new, and longer")

    assert path.read_bytes() == b"new, and longer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_file_that_cannot_be_published_leaves_the_old_one(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    atomic.publish_bytes(path, b"old")
    monkeypatch.setattr(os, call, fail_with(errno.ENOSPC))

    with pytest.raises(
        StorageFailed, match="No space left on device\n  free space on this file system"
    ) as caught:
        atomic.publish_bytes(path, b"new")
    monkeypatch.undo()

    assert caught.value.__cause__.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data[:3])))

    atomic.publish_bytes(tmp_path / "file", b"0123456789")

    assert (tmp_path / "file").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ELOOP]
)
def test_every_failure_says_what_where_and_what_next(tmp_path, code):
    with pytest.raises(StorageFailed) as caught, atomic.storage_errors("write", tmp_path):
        raise OSError(code, os.strerror(code))

    what, _, next_step = str(caught.value).partition("\n")
    assert what == f"could not write {tmp_path}: {os.strerror(code)}"
    assert "run the same command again" in next_step


def test_an_append_only_file_keeps_its_beginning_and_loses_the_rest(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"sound, torn")

    file = AppendFile.open(path, kept_bytes=5)
    file.append(b" again")
    file.sync()
    file.close()
    file.close()

    assert path.read_bytes() == b"sound again"
    assert file.size_bytes == file.synced_bytes == 11
    with pytest.raises(ValueError, match="is closed"):
        file.append(b"x")


def test_the_same_plan_is_written_once(tmp_path):
    path = tmp_path / "plan.json"
    digest = write_plan_once(path, PLAN)
    before = path.stat()

    assert write_plan_once(path, dict(reversed(PLAN.items()))) == digest == plan_digest(PLAN)
    assert path.stat() == before
    assert read_plan(path) == PLAN
    assert list(json.loads(path.read_text()))[-1] == "digest"


def test_another_plan_is_refused_and_nothing_touched(tmp_path):
    path = tmp_path / "plan.json"
    write_plan_once(path, PLAN)
    before = path.read_bytes()

    with pytest.raises(IdentityMismatch, match=r"plan\.json is the plan of another job; nothing was touched"):
        write_plan_once(path, {**PLAN, "version": 2})

    assert path.read_bytes() == before


def test_no_flipped_bit_gives_another_plan(tmp_path):
    path = tmp_path / "plan.json"
    assert read_plan(path) is None
    write_plan_once(path, PLAN)
    whole = path.read_bytes()

    for position in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        with path.open("r+b") as file:
            file.write(flipped)
        try:
            assert read_plan(path) == PLAN, position  # only white space was hit
        except IntegrityError:
            continue


def test_a_plan_that_json_cannot_hold_exactly_is_refused(tmp_path):
    with pytest.raises(ValueError, match="surrogates"):
        plan_digest({"text": "\ud800"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        plan_digest({"temperature": float("nan")})
    with pytest.raises(ValueError, match="checksummed JSON reserves it"):
        write_plan_once(tmp_path / "plan.json", {"digest": "mine"})


def test_a_manifest_comes_back_and_is_the_same_bytes_each_time(tmp_path):
    path = tmp_path / "manifest.json"
    assert read_manifest(path) is None

    write_manifest(path, MANIFEST)
    first = path.read_bytes()
    write_manifest(path, MANIFEST)

    assert read_manifest(path) == MANIFEST
    assert path.read_bytes() == first


def test_an_altered_or_foreign_manifest_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_manifest(path, MANIFEST)
    path.write_text(path.read_text().replace('"finished": 19', '"finished": 18'))
    with pytest.raises(IntegrityError, match=r"manifest\.json was altered"):
        read_manifest(path)

    monkeypatch.setattr("synthia_batch.storage.manifest.FORMAT_VERSION", 99)
    write_manifest(path, replace(MANIFEST, rows=11))
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="expected format version 2, got 99"):
        read_manifest(path)


def test_events_come_back_in_order_with_their_time(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog.open(path, lambda: datetime(2026, 11, 21, 22, tzinfo=UTC))
    log.append("started", workers=2)
    log.append("worker-lost", worker=1, reason="exit code -9")
    log.close()

    assert list(read_events(path)) == [
        {"time": "2026-11-21T22:00:00.000+00:00", "kind": "started", "workers": 2},
        {
            "time": "2026-11-21T22:00:00.000+00:00",
            "kind": "worker-lost",
            "worker": 1,
            "reason": "exit code -9",
        },
    ]


def test_a_torn_event_costs_only_itself(tmp_path):
    path = tmp_path / "events.jsonl"
    assert list(read_events(path)) == []
    path.write_bytes(b'{"kind": "started"}\n{"kind": "wor')
    assert list(read_events(path)) == [{"kind": "started"}]

    log = EventLog.open(path, lambda: datetime(2026, 11, 21, 22, tzinfo=UTC))
    log.append("resumed")
    log.close()

    assert [event["kind"] for event in read_events(path)] == ["started", "resumed"]


def test_the_boot_id_is_the_same_all_day():
    assert read_boot_id() == read_boot_id()
