"""What the user typed, to be typed again: in advice, and in the history of a run. Without its secrets."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "synthia-batch"
_HIDDEN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.*", re.DOTALL)
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_SECRET_FLAG = "--notify"
_SECRET_KEY = "notify="


def read_command() -> list[str] | None:
    """Return what was typed, to be shown and kept; None where Python called and nobody typed it."""
    program = Path(sys.argv[0])
    if program.name != PROGRAM and program.parent.name != "synthia_batch":
        return None
    return [PROGRAM, *conceal_arguments(sys.argv[1:])]


def spell_command(command: Sequence[str]) -> str:
    """Return a command as it is typed in a shell. A ${NAME} in it is the job's to read, not the shell's."""
    return shlex.join(command)


def describe_command() -> str:
    """Return what the user typed, to be typed again."""
    return spell_command([PROGRAM, *conceal_arguments(sys.argv[1:])])


def conceal_url(url: str) -> str:
    """Return `url` to be shown: its kind alone, unless all the rest of it is named as ${NAME}."""
    said = _REFERENCE.sub("", url.partition("://")[2] or url)
    is_all_named = _REFERENCE.search(url) and not any(character.isalnum() for character in said)
    return url if is_all_named else _HIDDEN.sub(r"\1://...", url)


def conceal_arguments(arguments: Sequence[str]) -> list[str]:
    """Return `arguments` of a command line without the secrets that addresses of notifications hold."""
    shown: list[str] = []
    for argument in arguments:
        before = shown[-1] if shown else ""
        if before == _SECRET_FLAG:
            shown.append(conceal_url(argument))
        elif argument.startswith(f"{_SECRET_FLAG}="):
            shown.append(f"{_SECRET_FLAG}={conceal_url(argument.removeprefix(f'{_SECRET_FLAG}='))}")
        elif argument.removeprefix("--set=").startswith(_SECRET_KEY):
            shown.append(_HIDDEN.sub(r"\1://...", argument))
        else:
            shown.append(argument)
    return shown
