"""Runs begun before the package was moved resume to the bytes that the old code would have written."""

import hashlib
import shutil
from pathlib import Path

import pytest
from conftest import Command, read_bytes_of_data

OLD = Path(__file__).parent / "old_runs"
COMMANDS = {
    "questions": [
        *("--prompt-column", "question", "--id-column", "id", "--keep-columns", "topic", "--flag", "empty"),
        *("-n", "10", "--max-tokens", "6", "--logprobs", "1", "--seed", "3", "--set", "engine.fail_every=7"),
    ],
    "conversations": ["--turns-column", "turns", "--id-column", "id", "--set", "engine.fail_every=11"],
}


def read_expected(name: str) -> dict[str, str]:
    lines = [line.split("  ") for line in (OLD / "expected.sha256").read_text().splitlines()]
    return {path.removeprefix(f"{name}/"): digest for digest, path in lines if path.startswith(f"{name}/")}


def copy_run(name: str, directory: Path) -> list[str]:
    """Copy the killed run and its input to `directory`; return the command that resumes it."""
    shutil.copytree(OLD / name, directory / name)
    shutil.copy(OLD / f"{name}.jsonl", directory)
    common = ["--engine", "scripted", "--pool", "local", "-o", name, "-s", "synthia"]
    return ["run", f"{name}.jsonl", *common, *COMMANDS[name]]


@pytest.mark.parametrize(("name", "most_made"), [("questions", 400), ("conversations", 120)])
def test_a_run_of_the_old_code_resumes_to_the_old_bytes(
    name: str, most_made: int, synthia: Command, tmp_path: Path
) -> None:
    arguments = copy_run(name, tmp_path)
    done = synthia(*arguments, "--set", f"engine.call_log={tmp_path / 'calls'}")
    assert done.returncode == 0, done.stderr
    files = read_bytes_of_data(tmp_path / name)
    assert {path: hashlib.sha256(files[path]).hexdigest() for path in files} == read_expected(name)
    made = (tmp_path / "calls").read_text().split()
    assert len(made) == len(set(made)), "a sample was generated twice"
    assert 0 < len(made) < most_made, "a finished sample was generated again"


@pytest.mark.parametrize("name", COMMANDS)
def test_another_identity_is_refused_in_a_run_of_the_old_code(
    name: str, synthia: Command, tmp_path: Path
) -> None:
    done = synthia(*copy_run(name, tmp_path), "--seed", "4")
    assert done.returncode == 4
    assert "seed" in done.stderr
