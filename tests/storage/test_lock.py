"""One owner per run directory, in real processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from synthia_batch.errors import IntegrityError, RunLocked, StorageFailed
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock, read_owner

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
HOLD_THE_LOCK = """
import subprocess, sys, time
from datetime import UTC, datetime
from pathlib import Path
from synthia_batch.storage.lock import RunLock
from synthia_batch.storage.layout import RunDir
with RunLock(RunDir(Path(sys.argv[1])), datetime.now(UTC)) as owner:
    if "with-child" in sys.argv:
        child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, close_fds=False)
        print(child.pid, flush=True)
    print("held", owner.epoch, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run_dir(tmp_path):
    made = RunDir(tmp_path / "run")
    made.create()
    return made


@pytest.fixture
def start_owner(run_dir):
    owners = []

    def start(*options):
        command = [sys.executable, "-c", HOLD_THE_LOCK, run_dir.root, *options]
        owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        owners.append(owner)
        return owner

    yield start
    for owner in owners:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_a_second_run_is_refused_and_told_who_is_first(run_dir, start_owner):
    owner = start_owner()
    assert owner.stdout.readline() == "held 1\n"

    with pytest.raises(RunLocked, match=f"in use by pid {owner.pid} on {os.uname().nodename}, since 20"):
        RunLock(run_dir, NOW).acquire()

    assert read_owner(run_dir.owner).epoch == 1


def test_a_stopped_owner_keeps_the_lock(run_dir, start_owner):
    owner = start_owner()
    owner.stdout.readline()
    owner.send_signal(signal.SIGSTOP)

    with pytest.raises(RunLocked):
        RunLock(run_dir, NOW).acquire()


def test_a_killed_owner_frees_the_lock_even_with_a_child_alive(run_dir, start_owner):
    owner = start_owner("with-child")
    child = int(owner.stdout.readline())
    owner.stdout.readline()
    owner.kill()
    owner.wait()

    try:
        with RunLock(run_dir, NOW) as next_owner:
            assert next_owner.epoch == 2
            assert next_owner.pid == os.getpid()
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_every_opening_has_an_epoch_of_its_own(run_dir):
    epochs = []
    for _ in range(3):
        with RunLock(run_dir, NOW) as owner:
            epochs.append(owner.epoch)

    assert epochs == [1, 2, 3]
    assert read_owner(run_dir.owner).started_at == "2026-11-21T22:00:00+00:00"


def test_two_locks_in_one_process_exclude_each_other(run_dir):
    with RunLock(run_dir, NOW), pytest.raises(RunLocked):
        RunLock(run_dir, NOW).acquire()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused(run_dir, monkeypatch, code):
    def fail(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(RunLocked, match="without working locks"):
        RunLock(run_dir, NOW).acquire()
    assert not run_dir.owner.exists()


def test_a_file_system_that_grants_one_lock_twice_is_refused(run_dir, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)

    with pytest.raises(RunLocked, match="it grants one lock twice"):
        RunLock(run_dir, NOW).acquire()


def test_the_lock_is_given_back_where_its_record_cannot_be_written(run_dir, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(StorageFailed):
        RunLock(run_dir, NOW).acquire()
    monkeypatch.undo()

    with RunLock(run_dir, NOW) as owner:
        assert owner.epoch == 1


def test_an_altered_record_of_the_owner_is_refused(run_dir):
    run_dir.owner.write_text('{"pid": 1, "epo')

    with pytest.raises(IntegrityError, match=r"owner\.json was altered: .*\n.*verify DIR --repair"):
        RunLock(run_dir, NOW).acquire()


def test_an_epoch_that_was_altered_is_refused(run_dir):
    with RunLock(run_dir, NOW):
        pass
    run_dir.owner.write_text(run_dir.owner.read_text().replace('"epoch": 1', '"epoch": 7'))

    with pytest.raises(IntegrityError, match=r"owner\.json was altered"):
        RunLock(run_dir, NOW).acquire()


def test_epochs_do_not_begin_anew_in_a_run_that_has_begun(run_dir):
    run_dir.plan.write_text("{}")

    with pytest.raises(IntegrityError, match=r"owner\.json is missing"):
        RunLock(run_dir, NOW).acquire()
    lock = RunLock(run_dir, NOW)
    lock.take()
    assert lock.begin_epoch(after=6).epoch == 7
    lock.release()


def test_a_second_run_is_refused_where_the_record_of_the_first_is_damaged(run_dir):
    with RunLock(run_dir, NOW):
        run_dir.owner.write_text("{")
        with pytest.raises(RunLocked, match="is in use by "):
            RunLock(run_dir, NOW).acquire()
