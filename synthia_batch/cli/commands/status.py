"""`synthia-batch status`: the progress of a run, as a page or as one line per update."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthia_batch.cli.page import Page
from synthia_batch.cli.run_location import is_url
from synthia_batch.core.formatting import encode_json, format_bytes, format_seconds
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from synthia_batch.results.read.attempt import WorkerActivity
    from synthia_batch.results.read.pipeline_status import PipelineStatus
    from synthia_batch.results.read.status import RunStatus

_LABEL = 10
OUTPUTS = "outputs"
"""The parent of run directories that nobody named."""
_MOST_WORKERS = 16
"""Up to this many workers get a line each; beyond, only those that are not ready."""
UPDATE_SECONDS = 2.0
"""Interval of --watch, equal to that at which a run records its progress."""


def status(
    directory: Annotated[
        str | None,
        typer.Argument(metavar="[DIR|URL]", help="A run directory, or s3:// or gs://... [lists outputs/]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one line per update.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Update every 2 s until the run ends; Ctrl-C exits with 0.")
    ] = False,
) -> None:
    """Show the progress of a run or pipeline. Only reads; works from any terminal while it is in progress.

    For a run in a store, shows once what the store has. With --watch a terminal shows a page that is
    updated in place; other outputs get one line per update. Without DIR, lists the runs in outputs/, the
    newest first.
    """
    if directory is None:
        _list_runs(as_json)
        return
    if is_url(directory):
        _print_remote(directory, as_json)
        return
    from synthia_batch.results.read.pipeline_status import open_status

    reader = open_status(Path(directory))
    found = reader.read()
    page = Page()
    if watch and found.is_going_on:
        try:
            while found.is_going_on:
                _show_update(found, page, as_json)
                time.sleep(UPDATE_SECONDS)
                found = reader.read()
        except KeyboardInterrupt:
            # Only the watching ends: the run continues.
            page.leave()
            raise typer.Exit(0) from None
    page.clear()
    _print(found, as_json)


def _list_runs(as_json: bool) -> None:
    """Print the runs in OUTPUTS, the newest first, one line each."""
    from synthia_batch.core.errors import SynthiaBatchError
    from synthia_batch.results.read.pipeline_status import open_status
    from synthia_batch.results.read.status import list_runs

    runs = list_runs(Path(OUTPUTS))
    if not runs:
        show(
            f"no runs in {OUTPUTS}/; name a run's directory, or begin one with synthia-batch run",
            file=sys.stderr,
        )
    for path in runs:
        try:
            found = open_status(path).read()
        except SynthiaBatchError as exc:
            show(f"{path}: {str(exc).splitlines()[0].removeprefix(f'{path}: ')}", file=sys.stderr)
            continue
        if as_json:
            _print(found, as_json)
        else:
            show(f"{path}  {describe_briefly(found)}")


def _print_remote(url: str, as_json: bool) -> None:
    from synthia_batch.storage.remote.download import read_remote_status

    found = read_remote_status(url)
    if as_json:
        show(encode_json(found.to_dict()))
        return
    ended = found.finished + found.failed
    show(f"{found.name}  {found.state}  {found.url}")
    show(f"samples   {ended} of {found.samples} stored: {found.finished} finished, {found.failed} failed")
    show(f"shards    {found.shards_published} of {found.shards}")
    if found.owner is not None:
        show(f"writer    {found.owner.describe(found.url)}")


def _show_update(found: "RunStatus | PipelineStatus", page: Page, as_json: bool) -> None:
    if as_json:
        _print(found, as_json)
        return
    if sys.stdout.isatty():
        page.draw(describe_status(found))
    else:
        time_of_day = datetime.now().strftime("%H:%M:%S")
        show(f"{time_of_day} {describe_briefly(found)}", flush=True)


def _print(found: "RunStatus | PipelineStatus", as_json: bool) -> None:
    text = encode_json(found.to_dict()) if as_json else "\n".join(describe_status(found))
    show(text, flush=True)


def describe_status(status: "RunStatus | PipelineStatus") -> list[str]:
    """Return `status` as lines, ending with the next command."""
    from synthia_batch.results.read.pipeline_status import PipelineStatus

    if isinstance(status, PipelineStatus):
        return _describe_pipeline(status)
    facts = [
        ("samples", _describe_counts(status)),
        *_describe_failures(status),
        ("speed", _describe_speed(status)),
        ("left", _describe_left(status)),
        *_describe_workers(status),
        ("shards", f"{status.shards_published:,} of {status.shards:,} published"),
        ("disk", f"{format_bytes(status.published_bytes)} published, {format_bytes(status.free_bytes)} free"),
        ("promise", status.determinism),
        ("next", status.next),
    ]
    lines = [f"{label:<{_LABEL}}{text}" for label, text in facts if text]
    return [f"{status.name}  {_describe_state(status)}", *lines]


def _describe_pipeline(status: "PipelineStatus") -> list[str]:
    """Return a line for each stage, and the facts of the one that is being played."""
    told = f", stages {status.summary}" if status.state == "incomplete" else ""
    lines = [f"{Path(status.directory).name}  {_describe_owner(status)}{told}"]
    width = max(map(len, status.stages), default=0) + 2
    for name, found in status.stages.items():
        mark = "outdated: a stage before it has changed; " if name in status.outdated else ""
        absent = "lost: its directory is not there" if name in status.lost else "not begun"
        lines.append(f"{name:<{width}}{mark}{absent if found is None else describe_briefly(found)}")
    lines += [
        f"{'tried':<{_LABEL}}{path}, no part of the pipeline: rm -r {shlex.quote(path)} removes it"
        for path in status.trials
    ]
    latest = status.latest
    if latest is not None and latest.state != "complete" and not status.outdated:
        return [*lines, "", *describe_status(latest)]
    if status.is_going_on or status.state == "complete":
        return lines
    of_failed = (
        f"{latest.next}, then " if latest is not None and latest.failures and not status.outdated else ""
    )
    return [*lines, f"{'next':<{_LABEL}}{of_failed}run the pipeline again"]


def describe_briefly(status: "RunStatus | PipelineStatus") -> str:
    """Return `status` as one line."""
    from synthia_batch.results.read.pipeline_status import PipelineStatus

    if isinstance(status, PipelineStatus):
        if status.state == "incomplete":
            return f"incomplete, stages {status.summary}"
        begun = [name for name, found in status.stages.items() if found is not None]
        of_stage = f", {begun[-1]}: {describe_briefly(status.latest)}" if status.latest is not None else ""
        return f"{status.state}, stage {len(begun)} of {len(status.stages)}{of_stage}"
    ended = status.samples_ended
    parts = [f"{status.state} {ended}/{status.samples} ({100 * ended / status.samples:.0f}%)"]
    if status.tokens_per_second_now is not None:
        parts.append(f"{status.tokens_per_second_now:.0f} tokens/s")
    if status.not_selected:
        parts.append(f"{status.not_selected} not selected")
    parts.append(f"{status.failed} failed")
    if status.truncated:
        parts.append(f"{100 * status.truncated_share:.1f}% cut off")
    if status.left_seconds is not None and status.is_going_on:
        parts.append(f"{format_seconds(status.left_seconds)} left")
    return ", ".join(parts)


def _describe_state(status: "RunStatus") -> str:
    text = _describe_owner(status)
    if status.state == "interrupted" and status.ended is not None:
        text += f" ({status.ended})"
    return f"{text}, attempt {status.attempts}"


def _describe_owner(status: "RunStatus | PipelineStatus") -> str:
    owner = "" if status.owner is None else f" (pid {status.owner.replace('@', ' on ')})"
    return f"{status.state}{owner}"


def _describe_counts(status: "RunStatus") -> str:
    ended = status.samples_ended
    text = (
        f"{ended:,} of {status.samples:,} ({100 * ended / status.samples:.1f}%): {status.finished:,} finished"
    )
    if status.truncated:
        text += f", {status.truncated:,} of them cut off at max_tokens ({100 * status.truncated_share:.1f}%)"
    if status.not_selected:
        text += f", {status.not_selected:,} not selected"
    return f"{text}, {status.failed:,} failed"


def _describe_failures(status: "RunStatus") -> Iterator[tuple[str, str]]:
    for number, (code, count) in enumerate(status.failures.items()):
        yield "" if number else "failures", f"{code} {count:,}"


def _describe_speed(status: "RunStatus") -> str:
    parts = []
    if status.is_going_on and status.tokens_per_second_now is not None:
        parts.append(_format_rate(status.tokens_per_second_now, status.samples_per_second_now) + " now")
    if status.tokens_per_second is not None:
        parts.append(_format_rate(status.tokens_per_second, status.samples_per_second) + " on average")
    if status.cached_prompt_share:
        parts.append(f"{100 * status.cached_prompt_share:.0f}% of the prompts from the prefix cache")
    return "; ".join(parts)


def _format_rate(tokens_per_second: float, samples_per_second: float | None) -> str:
    return f"{tokens_per_second:,.0f} tokens/s, {samples_per_second or 0:,.2f} samples/s"


def _describe_left(status: "RunStatus") -> str:
    if status.left_seconds is None or status.state == "complete":
        return ""
    text = f"about {format_seconds(status.left_seconds)}"
    return text if status.is_going_on else f"{text} once it resumes"


def _describe_workers(status: "RunStatus") -> Iterator[tuple[str, str]]:
    if not status.is_going_on:
        return
    if not status.workers:
        yield "workers", "none yet: checking earlier results and starting the pool"
    shown = [
        worker for worker in status.workers if len(status.workers) <= _MOST_WORKERS or worker.state != "ready"
    ][:_MOST_WORKERS]
    if len(shown) < len(status.workers):
        yield "workers", _count_states(status.workers)
    for number, worker in enumerate(shown):
        is_first = number == 0 and len(shown) == len(status.workers)
        yield "workers" if is_first else "", _describe_worker(worker)


def _describe_worker(worker: "WorkerActivity") -> str:
    text = f"{worker.worker:<3} {worker.state:<10}"
    if worker.state == "ready":
        busy = "" if worker.busy_share is None else f"  {100 * worker.busy_share:3.0f}% busy"
        text += f"{busy}  {worker.in_flight} in flight"
    if worker.restarts:
        text += f"  restarted {worker.restarts} times" if worker.restarts > 1 else "  restarted once"
    return text.rstrip()


def _count_states(workers: "Sequence[WorkerActivity]") -> str:
    counts = Counter(worker.state for worker in workers)
    return ", ".join(f"{count} {state}" for state, count in counts.items())
