"""What schedules are spared for their speed, with the reason of each.

All of them scan the input of a job once: it stays the same. They are without threads, the text of the dataset
card, the log of messages, and the pause in which a reader may give the lock back, since none runs meanwhile.
Most, too, without what a few jobs have (see Shape.has_parquet): parts of Parquet, which has tests of its own
(see parts for what takes its place), and the history in events.jsonl, which decides nothing.
"""

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from simulation.parts import use_parts
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.results.verify import verify
from synthia_batch.runner import run
from synthia_batch.runner.directory import session as sessions
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.storage import layout, lock, recovery
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.events import EventLog
from synthia_batch.storage.manifest import Manifest


class InlineExecutor:
    """Runs what it is given at once, in the caller's thread. The order of reads is then always the same."""

    def __init__(self, workers: int) -> None:
        """Take the place of a ThreadPoolExecutor."""

    def __enter__(self) -> "InlineExecutor":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing waits."""

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Call the function."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as exc:
            future.set_exception(exc)
        return future

    def shutdown(self, **options: bool) -> None:
        """Nothing waits."""


def yield_all(futures: Iterable["Future[Any]"]) -> Iterable["Future[Any]"]:
    """Take the place of as_completed: all are."""
    return iter(futures)


def write_short_card(session: RunSession, manifest: Manifest) -> None:
    """Write a card of one line, by the same calls as the long one."""
    publish_bytes(session.run_dir.readme, f"{session.name}: {manifest.samples} samples\n".encode())


def keep_no_log(path: Path) -> nullcontext[None]:
    """Keep no messages: a run's log is written through Python's own files, which are not simulated."""
    return nullcontext()


def keep_no_event(log: EventLog, *event: Any, **fields: Any) -> None:
    """Keep no event."""


def scan_once(job: ResolvedJob, *arguments: Any) -> Any:
    """Return the scan of the job's input, made by the first attempt that asks for it."""
    key = job.fingerprint, str(job.inputs)
    if key not in _scans:
        _scans[key] = _scan_input(job, *arguments)
    return _scans[key]


@functools.cache
def find_place(place: Any, root: Path) -> Path:
    """Return a path of a run directory: each is built once."""
    return root / place._path  # type: ignore[no-any-return]


_scans: dict[tuple[str, str], Any] = {}
_scan_input = sessions.scan_input
_append, _write = EventLog.append, EventLog.write


def spare(*, has_parquet: bool) -> None:
    """Spare the next schedule parts of Parquet and events, unless it `has_parquet`."""
    use_parts(are_parquet=has_parquet)
    EventLog.append = _append if has_parquet else keep_no_event  # type: ignore[method-assign]
    EventLog.write = _write if has_parquet else keep_no_event  # type: ignore[method-assign]


def take_shortcuts() -> None:
    """Put these in the place of what they stand for."""
    for module in (recovery, verify):
        module.ThreadPoolExecutor = InlineExecutor  # type: ignore[attr-defined]
        module.as_completed = yield_all  # type: ignore[attr-defined]
    run.make_card = write_short_card  # type: ignore[attr-defined]
    sessions.keep_log = keep_no_log  # type: ignore[attr-defined]
    sessions.scan_input = scan_once
    lock._READER_SECONDS = 0.0
    lock._find_holder = lambda path: None  # It only names the process in a message.
    layout._Place.__get__ = lambda place, run_dir, kind: find_place(place, run_dir.root)  # type: ignore
