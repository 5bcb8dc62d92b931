"""The processes that another one has started, directly or not. Needs Linux: elsewhere none are found."""

import contextlib
import os
import signal
from pathlib import Path

_PROC = Path("/proc")


def list_descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for directory in _PROC.iterdir() if _PROC.is_dir() else ():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                # The fields behind the name, which may contain anything, are state and parent.
                parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(directory.name))
    found = list(children.get(pid, ()))
    for child in found:  # Grows while it is walked through.
        found += children.get(child, ())
    return found


def kill_descendants(pid: int) -> None:
    """End the processes below `pid` with SIGKILL, except those in a session of their own, as a guard is."""
    for child in list_descendants(pid):
        with contextlib.suppress(OSError):
            if os.getsid(child) != child:
                os.kill(child, signal.SIGKILL)
