"""The command line called in this process, and deaths in the middle of it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from synthia_batch.cli.app import main

WRITING_CALLS = ("write", "rename", "unlink", "fsync", "fdatasync", "ftruncate", "mkdir")


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Killed(BaseException):
    """Stands for SIGKILL: from here on this "process" writes nothing more."""


def call(capsys: Any, *arguments: str | Path) -> Answer:
    """Run the command line in this process and in the current directory."""
    capsys.readouterr()
    with patch.object(sys, "argv", ["synthia-batch", *map(str, arguments)]):
        try:
            main()
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    captured = capsys.readouterr()
    return Answer(code, captured.out, captured.err)


@contextmanager
def dying_at(number: int) -> Iterator[list[int]]:
    """Let the `number`-th call that changes a file, and all after it, raise Killed. Counts the calls."""
    calls = [0]

    def die_in_time(real: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*arguments: Any, **keywords: Any) -> Any:
            calls[0] += 1
            if calls[0] >= number:
                raise Killed
            return real(*arguments, **keywords)

        return stand_in

    patches = [patch.object(os, name, die_in_time(getattr(os, name))) for name in WRITING_CALLS]
    for active in patches:
        active.start()
    try:
        yield calls
    finally:
        for active in patches:
            active.stop()


def snapshot(directory: Path) -> dict[str, bytes]:
    """Return every file under `directory` by its relative name, and every directory as b""."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }
