"""The command line without its secrets, for advice and for the history of a run."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from synthia_batch.core.masking import HIDDEN, is_secret_name, mask_if_address, mask_known
from synthia_batch.job.loading.secrets import SECRET_KEYS, is_secret_key, mask

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
    """Return the `arguments` of a command line, one for one, with their secrets masked."""
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
        elif equals and flag.startswith("-"):
            shown.append(f"{flag}={mask_known(mask_if_address(value))}")
        else:
            shown.append(mask_known(mask_if_address(argument)))
        before = argument
    return shown


def _mask_setting(assignment: str) -> str:
    """Return KEY=VALUE masked; a value with fields, one of which may be a secret, is left out whole."""
    key, equals, value = assignment.partition("=")
    if is_secret_key(key.strip()):
        return f"{key}{equals}{mask(value)}"
    words = re.findall(r"[\w-]+", value) if value.lstrip().startswith(("{", "[")) else []
    if any(is_secret_name(word) or word == "notify" for word in words):
        return f"{key}{equals}{HIDDEN}"
    return f"{key}{equals}{mask_known(mask_if_address(value))}"
