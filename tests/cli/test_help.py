"""Help, version and completion: quick, plain, in groups, with examples that are commands."""

import re
import shlex
import subprocess
import sys
from typing import get_args

import pytest
import typer
from conftest import Command, make_environment

from synthia_batch.cli.app import app
from synthia_batch.cli.flags import list_job_flags
from synthia_batch.cli.help import COMMAND_GROUPS, EXAMPLES
from synthia_batch.core.hardware import installed_vllm
from synthia_batch.job.keys import walk_keys
from synthia_batch.job.markers import Flag, Panel

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
AS_INSTALLED = (
    "import sys; sys.argv = ['synthia-batch', *sys.argv[1:]]; from synthia_batch.cli.app import main; main()"
)


def run_installed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command under its own name, as its script would."""
    return subprocess.run(
        [sys.executable, "-c", AS_INSTALLED, *arguments],
        env=make_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_stands_in_one_group_in_the_order_of_a_night(synthia: Command) -> None:
    done = synthia("--help", COLUMNS="100")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+):$", done.stdout, re.MULTILINE) == ["Options", *COMMAND_GROUPS]
    listed = re.findall(r"^  (\w+)  +\S", done.stdout, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert listed == [name for names in COMMAND_GROUPS.values() for name in names if name in COMMANDS]


def test_every_flag_of_a_job_is_built_from_the_schema() -> None:
    declared = [key.name for key in walk_keys() if key.find(Flag)]
    assert sorted(key.name for key, _ in list_job_flags().values()) == sorted(declared)
    opts = {flag for parameter in COMMANDS["run"].params for flag in parameter.opts}
    assert {"-m", "--model", "-o", "--json-schema", "--engine", "--base-url", "--no-drop-flagged"} - opts == {
        "--no-drop-flagged"
    }


def test_the_flags_of_run_stand_under_their_groups(synthia: Command) -> None:
    told = synthia("run", "--help").stdout
    sections = dict(re.findall(r"^([A-Z][\w ]+):\n((?:  .*\n)+)", told, re.MULTILINE))
    assert set(sections) == {"Arguments", *get_args(Panel), "Options", "Examples"}
    assert "--deadline" in sections["The night"]
    assert "--dry-run" in sections["Options"]
    assert "list[" not in told


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_ends_with_examples_that_it_takes(synthia: Command, name: str) -> None:
    told = synthia(name, "--help").stdout
    assert told.partition("\nExamples:\n")[2].splitlines() == [f"  {line}" for line in EXAMPLES[name]]
    flags = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    for line in EXAMPLES[name]:
        words = shlex.split(line, comments=True)
        assert words[:2] == ["synthia-batch", name]
        assert {word for word in words if word.startswith("-")} <= flags


def test_the_version_is_two_lines(synthia: Command) -> None:
    done = synthia("--version")
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r"synthia-batch \d+\.\d+\.\d+", first)
    assert second.endswith(f"Python {sys.version.split()[0]}")
    assert " ".join(installed_vllm() or ("vllm not installed",)) in second
    assert "ray 2." in second


@pytest.mark.parametrize(
    ("shell", "typed", "offered"),
    [
        ("bash", "synthia-batch pl", "plan"),
        ("bash", "synthia-batch run --max-f", "--max-failures"),
        ("bash", "synthia-batch run --preset synthia-v", "synthia-v3-11b"),
        ("bash", "synthia-batch plan --determinism f", "fast"),
        ("zsh", "synthia-batch verif", "verify"),
        ("fish", "synthia-batch sche", "schema"),
    ],
)
def test_a_shell_completes_commands_and_flags(shell: str, typed: str, offered: str) -> None:
    asked = {
        "bash": {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": typed},
        "fish": {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    done = run_installed(_SYNTHIA_BATCH_COMPLETE=f"complete_{shell}", **asked)
    assert offered in done.stdout, done.stderr


def test_the_completion_script_can_be_shown(synthia: Command) -> None:
    done = run_installed("--show-completion", "bash")
    if done.returncode:  # Typer tells the shell by its parent process.
        done = run_installed(_SYNTHIA_BATCH_COMPLETE="source_bash")
    assert "_SYNTHIA_BATCH_COMPLETE=complete_bash" in done.stdout, done.stderr


def test_nothing_is_coloured(synthia: Command) -> None:
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "PY_COLORS": "1"}
    for typed in (("--help",), ("run", "--help"), ("run", "nowhere.jsonl"), ("rum",)):
        for environment in ({}, {"NO_COLOR": "1"}, colours):
            done = synthia(*typed, **environment)
            assert "\x1b" not in done.stdout + done.stderr


def test_help_is_as_wide_as_the_terminal_and_no_wider_than_can_be_read(synthia: Command) -> None:
    for columns, most in ((60, 60), (100, 100), (300, 110)):
        lines = (
            synthia("tune", "--help", COLUMNS=str(columns)).stdout.partition("\nExamples:")[0].splitlines()
        )
        assert most - 20 < max(map(len, lines)) <= most
