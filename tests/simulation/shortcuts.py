"""What schedules are spared for their speed: threads, the text of the dataset card, a log of messages."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from synthia_batch.results.verify import verify
from synthia_batch.runner import run
from synthia_batch.runner.directory import session as sessions
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.storage import recovery
from synthia_batch.storage.atomic import publish_bytes
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


def take_shortcuts() -> None:
    """Put these in the place of what they stand for."""
    for module in (recovery, verify):
        module.ThreadPoolExecutor = InlineExecutor  # type: ignore[attr-defined]
        module.as_completed = yield_all  # type: ignore[attr-defined]
    run.make_card = write_short_card  # type: ignore[attr-defined]
    sessions.keep_log = keep_no_log  # type: ignore[attr-defined]
