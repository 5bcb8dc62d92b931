"""What a run refuses, it names, and leaves the directory as it was, byte for byte."""

import errno
import fcntl
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl
from inside import call, snapshot

RUN = ("run", "q.jsonl", "--engine", "scripted", "--pool", "local", "-q", "-o", "out")
HOLD_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""
DATA = "data/train-00000-of-00002.parquet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("refusals")
    write_jsonl(home / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(1200)])
    subprocess.run(command_of(*RUN), cwd=home, check=True, capture_output=True)
    return home


@pytest.fixture(params=["complete", "unfinished"])
def home(finished: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The current directory of the commands, with a run in "out" that is complete, or lacks its manifest."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    if request.param == "unfinished":
        (tmp_path / "out/manifest.json").unlink()
        (tmp_path / "out/.synthia/events.jsonl").write_text('{"torn')
    return tmp_path


def change_input(home: Path) -> None:
    text = (home / "q.jsonl").read_text()
    (home / "q.jsonl").write_text(text.replace("What is 7 squared?", "What is 7 doubled?"))


def append_input(home: Path) -> None:
    with (home / "q.jsonl").open("a") as file:
        file.write('{"question": "One more?"}\n')


def alter_part(home: Path) -> None:
    content = bytearray((home / "out" / DATA).read_bytes())
    content[5000] ^= 4
    (home / "out" / DATA).write_bytes(content)


def remove_part(home: Path) -> None:
    (home / "out" / DATA).unlink()


@pytest.mark.parametrize(
    ("change", "flags", "words"),
    [
        (None, ("--seed", "7", "--top-p", "1"), ("seed: 0 before, 7 now",)),
        (None, ("--top-p", "0.5", "-n", "2"), ("sampling.top_p: 1.0 before, 0.5 now", "num_samples: 1")),
        (None, ("-s", "synthia"), ("system: [['none', ",)),
        (change_input, (), ("input.digest: ",)),
        (append_input, (), ("input.digest: ",)),
        (alter_part, (), (f"out/{DATA} was altered", "verify DIR --repair")),
        (remove_part, (), (f"out/{DATA} was published and is missing", "verify DIR --repair")),
    ],
)  # fmt: skip
def test_it_is_refused_by_name_and_nothing_is_touched(
    synthia: Command,
    home: Path,
    change: Callable[[Path], None] | None,
    flags: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    if change is not None:
        change(home)
    before = snapshot(home)
    done = synthia(*RUN, *flags)
    assert done.returncode == 4, done.stderr
    assert "nothing was touched" in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert snapshot(home) == before


def test_the_order_of_system_messages_is_identity(synthia: Command, home: Path) -> None:
    both = ("-s", "synthia", "-s", "none")
    assert synthia(*RUN[:-1], "both", *both).returncode == 0
    before = snapshot(home)
    done = synthia(*RUN[:-1], "both", "-s", "none", "-s", "synthia")
    assert (done.returncode, "system: " in done.stderr) == (4, True), done.stderr
    assert snapshot(home) == before


@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_a_second_run_names_the_first(synthia: Command, tmp_path: Path, is_stopped: bool) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(3000)])
    log = tmp_path / "calls"
    slow = (
        "--set",
        "engine.latency_ms=500",
        "--set",
        "engine.max_num_seqs=16",
        "--set",
        f"engine.call_log={log}",
    )
    first = subprocess.Popen(
        command_of(*RUN, *slow), cwd=tmp_path, env=make_environment(), stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: len(read_call_log(log)) > 10, first)
        if is_stopped:
            first.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
        before = snapshot(tmp_path)
        second = synthia(*RUN)
        repair = synthia("verify", "out", "--repair")
        check = synthia("verify", "out")
        after = snapshot(tmp_path)
        for refused in (second, repair):
            assert refused.returncode == 4, refused.stderr
            assert f"in use by pid {first.pid} on {socket.gethostname()}, since 20" in refused.stderr
            assert "nothing was touched" in refused.stderr
        assert check.returncode == 0, check.stdout
        assert f"pid {first.pid} on {socket.gethostname()} is running it" in check.stdout
        if is_stopped:
            assert after == before
            first.send_signal(signal.SIGCONT)
        first.terminate()
        assert first.wait(60) == 75
    finally:
        first.kill()
        first.wait()
    assert synthia(*RUN).returncode == 0
    assert synthia("verify", "out").returncode == 0


def test_one_that_is_only_opening_is_named_as_well(
    home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run has the lock and has not come to write who it is."""
    monkeypatch.chdir(home)
    (home / "out/manifest.json").unlink(missing_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, "out/.synthia/lock"], cwd=home, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        before = snapshot(home)
        answer = call(capsys, *RUN)
        assert answer.code == 4
        assert f"in use by pid {holder.pid} on {socket.gethostname()};" in answer.err
        assert snapshot(home) == before
    finally:
        holder.kill()
        holder.communicate()


def wait_for(is_so: Callable[[], bool], child: subprocess.Popen[Any]) -> None:
    while not is_so():
        assert child.poll() is None, "it ended too early"
        time.sleep(0.02)


def lack_locks(fd: int, operation: int) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def grant_every_lock(fd: int, operation: int) -> None:
    return None


@pytest.mark.parametrize(
    ("flock", "reason"),
    [(lack_locks, "Function not implemented"), (grant_every_lock, "it grants one lock twice")],
)
def test_a_file_system_without_working_locks_is_refused(
    home: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    flock: Callable[[int, int], None],
    reason: str,
) -> None:
    monkeypatch.chdir(home)
    (home / "out/manifest.json").unlink(missing_ok=True)
    before = snapshot(home)
    with monkeypatch.context() as patches:
        patches.setattr(fcntl, "flock", flock)
        answer = call(capsys, *RUN)
        fresh = call(capsys, *RUN[:-1], "fresh")
    for refused in (answer, fresh):
        assert refused.code == 4
        assert f"is on a file system without working locks ({reason})" in refused.err
        assert "-o" in refused.err
    # A lock can only be tried where it is to be: that is all that is made.
    assert set(snapshot(home)) - set(before) <= {"fresh", "fresh/.synthia", "fresh/.synthia/lock"}
    assert {name: content for name, content in snapshot(home).items() if name in before} == before
    assert call(capsys, *RUN[:-1], "fresh").code == 0
    assert read_bytes_of_data(home / "fresh") == {
        **read_bytes_of_data(home / "out"),
        "manifest.json": (home / "fresh/manifest.json").read_bytes(),
    }
