"""The arguments of this process as other users of the machine see them, in `ps` and /proc/PID/cmdline."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_STAT = Path("/proc/self/stat")
_ARG_START, _ARG_END = 48 - 3, 49 - 3
"""Fields of /proc/PID/stat, counted from the state behind the name in parentheses (man 5 proc_pid_stat)."""


def hide_arguments(shown: Sequence[str]) -> None:
    """Show `shown` in place of the program's arguments, which it has one for one.

    Programs that this one starts, and libraries such as Ray that save the command line, read it as well.
    Does nothing where the kernel does not tell where the arguments are.
    """
    if list(shown) == sys.argv[1:]:
        return
    try:
        fields = _STAT.read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    except (OSError, IndexError, ValueError):
        return
    arguments = ctypes.string_at(start, end - start).split(b"\0") if start else []
    first = len(arguments) - 1 - len(shown)  # The last one ends with a zero, too.
    for index, argument in enumerate(arguments):
        if first <= index < first + len(shown):
            ctypes.memset(start, 0, len(argument))
            text = os.fsencode(shown[index - first])[: len(argument)]
            ctypes.memmove(start, text.ljust(len(argument)), len(argument))
        start += len(argument) + 1
