"""Streams that are closed, full or gone: they never end a run, and never pass for a whole output."""

import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import Command, command_of, make_environment, read_bytes_of_data, write_jsonl

SCRIPTED = ("--engine", "scripted", "--pool", "local")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(20)])
    return Path("q.jsonl")


def run_in_shell(home: Path, redirection: str, *arguments: str | Path) -> int:
    """Run the command line in bash with `redirection` behind it, and return its own exit code."""
    command = f"{shlex.join(command_of(*arguments))} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=home, env=make_environment(), timeout=120, check=False)
    return done.returncode


@pytest.mark.parametrize(
    "redirection", ["2>&-", "2>/dev/full", "2>&1 | true", ">/dev/full", ">&- 2>&- <&-", ">&-"]
)
def test_a_run_ends_as_it_would_whatever_becomes_of_its_streams(
    questions: Path, tmp_path: Path, redirection: str
) -> None:
    flags = (*SCRIPTED, "--set", "engine.fail_every=5", "--set", "engine.latency_ms=20")
    assert run_in_shell(tmp_path, redirection, "run", questions, *flags, "-o", "lost") == 0
    assert run_in_shell(tmp_path, "2>/dev/null", "run", questions, *flags, "-o", "whole") == 0
    assert (
        read_bytes_of_data(tmp_path / "lost")["data/train-00000-of-00001.parquet"]
        == (read_bytes_of_data(tmp_path / "whole")["data/train-00000-of-00001.parquet"])
    )
    log = (tmp_path / "lost/.synthia/logs/run.log").read_text()
    assert "q.jsonl:1: scripted_failure: failed as scripted" in log


def test_the_exit_code_is_the_runs_own(questions: Path, tmp_path: Path) -> None:
    flags = (*SCRIPTED, "--set", "engine.fail_every=2", "--max-failures", "1")
    assert run_in_shell(tmp_path, "2>/dev/full >/dev/full", "run", questions, *flags) == 3


def test_an_output_that_cannot_be_written_is_an_error_and_no_bug(
    questions: Path, tmp_path: Path, synthia: Command
) -> None:
    assert synthia("run", questions, *SCRIPTED, "-o", "out").returncode == 0
    for arguments in (("export", "out", "--to", "csv"), ("status", "out"), ("plan", questions, *SCRIPTED)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command_of(*arguments),
                cwd=tmp_path,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=make_environment(),
                check=False,
            )
        assert done.returncode == 74
        assert done.stderr.endswith("error: stdout cannot be written: No space left on device\n")
