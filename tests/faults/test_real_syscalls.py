"""The same kills at real system calls, by strace: nothing that syscalls.py might miss is hidden here."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, read_call_log, write_jsonl
from harness import exhaustively, read_ended

ROWS = 12
SOME_POINTS = [("fsync", 3), ("fdatasync", 2), ("rename", 2), ("rename", 5), ("unlink", 1), ("mkdir", 3)]
ALL_POINTS = [
    *(("fsync", number) for number in range(1, 25)),
    *(("fdatasync", number) for number in range(1, 6)),
    *(("rename", number) for number in range(1, 9)),
    *(("unlink", number) for number in range(1, 4)),
    *(("mkdir", number) for number in range(1, 8)),
]
POINTS = [SOME_POINTS, exhaustively(ALL_POINTS, "a kill inside every fsync, rename, unlink and mkdir")]


def find_strace() -> str:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed; test_kill_everywhere.py has done the same without it")
    probe = subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.decode().strip()}")
    return strace


@pytest.mark.parametrize("points", POINTS, ids=["some", "all"])
def test_killed_inside_a_real_system_call_the_next_run_goes_on(
    synthia: Command, tmp_path: Path, points: list[tuple[str, int]]
) -> None:
    strace = find_strace()
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(ROWS)])
    flags = ("run", "q.jsonl", "--engine", "scripted", "--pool", "local", "-q")
    flags += ("--set", "engine.fail_every=5")
    assert synthia(*flags, "-o", "whole").returncode == 0
    kills = 0
    for name, number in points:
        output = f"killed-{name}-{number}"
        inject = ["-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"]
        traced = [strace, "-f", "-qq", "-o", "/dev/null", *inject, *command_of(*flags, "-o", output)]
        environment = make_environment()
        killed = subprocess.run(traced, cwd=tmp_path, env=environment, capture_output=True, check=False)
        kills += killed.returncode != 0
        ended = read_ended(tmp_path / output)
        log = tmp_path / f"calls-{name}-{number}"
        resumed = synthia(*flags, "--set", f"engine.call_log={log}", "-o", output)
        assert resumed.returncode == 0, (name, number, resumed.stderr)
        assert read_bytes_of_data(tmp_path / output) == read_bytes_of_data(tmp_path / "whole"), (name, number)
        assert not set(read_call_log(log)) & ended, (name, number)
    print(f"{kills} kills inside real system calls")
    assert kills >= 4
