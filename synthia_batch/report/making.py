"""write_report(): report.html of a run directory. No part of the dataset, and no run fails for it."""

from collections.abc import Callable
from pathlib import Path

from synthia_batch.errors import UsageError
from synthia_batch.report.summary import read_report
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir


def write_report(directory: Path, output: Path | None = None) -> Path:
    """Write the report of the run in `directory` to `output`, or into it, and return where it is.

    Raises:
        UsageError: `directory` is no run directory, or `output` cannot be a file.
        IntegrityError: What it holds is not what was written.
        StorageFailed: A file could not be read or written.
    """
    # Here, since a run is not to pay for matplotlib and Jinja before its end.
    from synthia_batch.report.page import render_page

    path = output or RunDir(directory).report
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"-o {path}: name a file in a directory that is there")
    publish_bytes(path, render_page(read_report(directory)).encode(errors="replace"))
    return path


def try_report(directory: Path, say: Callable[[str], None]) -> None:
    """Write the report of a run that is complete; where that fails, say so, and that the run is whole."""
    try:
        write_report(directory)
    # Of whatever kind, an impatient Ctrl-C too: the dataset is there, and must not seem to be lost.
    except (Exception, KeyboardInterrupt) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        again = f"synthia-batch report {directory}"
        say(f"no report could be made: {reason}\n  the dataset is complete; try `{again}`")
