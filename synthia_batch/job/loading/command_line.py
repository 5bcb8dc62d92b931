"""The command line without its secrets, for advice and for the history of a run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from synthia_batch.job.loading.secrets import SECRET_KEYS, mask

PROGRAM = "synthia-batch"
_OWN_FLAGS = {
    "plan": {"--probe": True, "--json": False},
    "preview": dict.fromkeys(("-n", "--rows"), True)
    | dict.fromkeys(("--random", "--answers", "--full", "--json"), False),
}
"""Flags of these commands that `run` lacks or uses differently, and whether a value follows."""
_SECRET_FLAGS = tuple(f"--{key}" for key in SECRET_KEYS)
_SETTING = "--set"


def read_command() -> list[str] | None:
    """Return the command line without its secrets; None if Python code called the package."""
    program = Path(sys.argv[0])
    if program.name != PROGRAM and program.parent.name != "synthia_batch":
        return None
    return [PROGRAM, *mask_arguments(sys.argv[1:])]


def turn_into_run(command: Sequence[str]) -> list[str]:
    """Return the `run` command of the whole job that `command`, a preview or a probe, ran in part."""
    program, name, *arguments = command
    own = _OWN_FLAGS.get(name, {})
    kept: list[str] = []
    is_value = False
    for argument in arguments:
        flag = argument.partition("=")[0]
        if is_value or flag in own:
            is_value = not is_value and own[flag] and "=" not in argument
        elif not (argument.startswith("-n") and "-n" in own):
            kept.append(argument)
    return [program, "run", *kept]


def describe_command() -> str:
    """Return the command line as the user can type it again."""
    return shlex.join([PROGRAM, *mask_arguments(sys.argv[1:])])


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the `arguments` of a command line with their secrets masked."""
    shown: list[str] = []
    before = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if before in _SECRET_FLAGS:
            shown.append(mask(argument))
        elif before == _SETTING:
            shown.append(_mask_setting(argument))
        elif equals and flag in _SECRET_FLAGS:
            shown.append(f"{flag}={mask(value)}")
        elif equals and flag == _SETTING:
            shown.append(f"{flag}={_mask_setting(value)}")
        else:
            shown.append(argument)
        before = argument
    return shown


def _mask_setting(assignment: str) -> str:
    key, equals, value = assignment.partition("=")
    return f"{key}{equals}{mask(value)}" if key in SECRET_KEYS else assignment
