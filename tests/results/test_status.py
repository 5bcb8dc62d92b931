"""The status of a run from its directory: during the run, after a kill, and from its history alone."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, command_of, make_environment, write_jsonl

from synthia_batch.cli import page as pages
from synthia_batch.cli.commands.status import describe_briefly, describe_status
from synthia_batch.errors import IntegrityError
from synthia_batch.results.read import snapshot
from synthia_batch.results.read.attempt import AttemptHistory, Rate, WorkerActivity
from synthia_batch.results.read.snapshot import open_snapshots
from synthia_batch.results.read.status import StatusReader, read_status
from synthia_batch.storage import lock
from synthia_batch.storage.events import EventReader
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import RunLock

SCRIPTED = ("--engine", "scripted", "--pool", "local", "-o", "out")
BEGIN = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)


def event(kind: str, second: float, **fields: Any) -> dict[str, Any]:
    return {"time": (BEGIN + timedelta(seconds=second)).isoformat(), "kind": kind, **fields}


def progress(second: float, samples: int, tokens: int, *busy: float) -> dict[str, Any]:
    workers = [
        {"worker": n, "busy_seconds": seconds, "heard_seconds": second, "in_flight": 7, "steps": 1}
        for n, seconds in enumerate(busy)
    ]
    return event(
        "progress", second, samples=samples, tokens=tokens, prompt_tokens=10 * samples,
        cached_prompt_tokens=samples, workers=workers,
    )  # fmt: skip


def take(*events: dict[str, Any]) -> AttemptHistory:
    history = AttemptHistory()
    for one in events:
        history.apply(one)
    return history


STARTED = event("attempt_started", 0, epoch=1, pid=1, host="h")


def test_workers_have_the_state_that_they_last_reported() -> None:
    history = take(
        STARTED,
        event("pool_started", 1, workers=4),
        *(event("worker_loading", 2, worker=n, epoch=n) for n in range(3)),
        *(event("worker_ready", 10, worker=n, epoch=n) for n in (0, 1)),
        progress(20, 50, 500, 5.0, 10.0),
        event("worker_lost", 21, worker=1, epoch=1, is_given_up=False),
        event("worker_lost", 22, worker=2, epoch=2, is_given_up=True),
        event("worker_added", 23, worker=4),
    )
    states = history.list_workers()
    assert [worker.state for worker in states] == ["ready", "restarting", "given up", "starting", "starting"]
    assert states[0] == WorkerActivity(worker=0, state="ready", restarts=0, in_flight=7, busy_share=0.5)
    assert states[1].restarts == history.restarts == 1
    history.apply(event("attempt_started", 30, epoch=2, pid=1, host="h"))
    assert history.list_workers() == ()
    assert history.restarts == 0


def test_the_rate_of_now_is_that_of_the_last_minute() -> None:
    history = take(STARTED, event("worker_ready", 0, worker=0, epoch=1))
    assert history.measure_average() is None
    for second in range(2, 302, 2):
        rate = 10 if second <= 200 else 1
        history.apply(progress(second, 0, 0, 1.0))
        history.apply(
            progress(second, min(second, 200) * 10 + max(0, second - 200) * rate, second * 100, 1.0)
        )
    assert history.measure_recent() == Rate(samples_per_second=1.0, tokens_per_second=100.0)
    average = history.measure_average()
    assert average is not None
    assert average.samples_per_second == pytest.approx(2100 / 300)


def test_events_far_apart_still_give_a_rate() -> None:
    history = take(
        STARTED,
        event("worker_ready", 0, worker=0, epoch=1),
        progress(100, 10, 90, 1.0),
        progress(400, 40, 390, 1.0),
    )
    assert history.measure_recent() == Rate(samples_per_second=0.1, tokens_per_second=1.0)


def test_the_time_in_which_engines_load_is_in_no_rate() -> None:
    ready = event("worker_ready", 40, worker=0, epoch=1)
    history = take(STARTED, progress(2, 0, 0), progress(39, 0, 0), ready, progress(50, 20, 200, 9.0))
    assert history.measure_recent() == history.measure_average()
    assert history.measure_recent() == Rate(samples_per_second=2.0, tokens_per_second=20.0)


def test_a_log_that_grows_is_read_on_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.read() == []
    path.write_bytes(b'{"kind": "a"}\n{"kind": "b"}\n{"kin')
    assert [one["kind"] for one in reader.read()] == ["a", "b"]
    with path.open("ab") as file:
        file.write(b'd": "c"}\ntorn\n{"kind": "d"}\n')
    assert [one.get("kind", one.get("kind")) for one in reader.read()] == ["c", "d"]
    assert reader.read() == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of 3,000 samples, in "out", was killed in its third shard."""
    home = tmp_path_factory.mktemp("killed")
    write_jsonl(home / "q.jsonl", [{"question": f"What is {n} squared?"} for n in range(3000)])
    command = command_of(
        "run", "q.jsonl", *SCRIPTED, "-q", "--set", "engine.fail_every=100", "--set", "engine.latency_ms=40",
        "--set", "engine.max_num_seqs=32", "--max-tokens", "20",
    )  # fmt: skip
    with subprocess.Popen(command, cwd=home, env=make_environment()) as run:
        journal = home / "out/.synthia/journal/shard-00002.wal"
        while not journal.exists() or journal.stat().st_size < 2000:
            assert run.poll() is None
            time.sleep(0.02)
        run.kill()
    return home


@pytest.fixture
def half_done(killed: Path, tmp_path: Path) -> Path:
    """That run, to be changed."""
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def test_counts_are_the_same_from_events_and_from_the_files_themselves(killed: Path, half_done: Path) -> None:
    status = read_status(half_done)
    assert status.state == "interrupted"
    assert status.shards_published >= 1
    assert 1000 < status.finished + status.failed < 3000
    assert status.failures == {"scripted_failure": status.failed}
    assert 0 < status.truncated < status.finished
    assert status.published_bytes > 0
    assert status.next.startswith(f"cd {killed} && synthia-batch run q.jsonl --engine scripted")
    (half_done / ".synthia/events.jsonl").unlink()
    read = read_status(half_done)
    for name in ("finished", "failed", "failures", "truncated", "shards_published", "published_bytes"):
        assert getattr(read, name) == getattr(status, name), name
    assert read.next == "run the original command again"


def test_a_second_read_covers_only_what_has_changed(half_done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = StatusReader(half_done)
    first = reader.read()
    monkeypatch.setattr(snapshot, "read_ledger", refuse)
    monkeypatch.setattr(snapshot, "_count_parts", refuse)
    inspect = snapshot.inspect_shard
    inspected: list[int] = []

    def count(run_dir: Any, shard: Any, *rest: Any) -> Any:
        if run_dir.journal(shard).exists():
            inspected.append(shard.number)
        return inspect(run_dir, shard, *rest)

    monkeypatch.setattr(snapshot, "inspect_shard", count)
    again = reader.read()
    assert (again.finished, again.failures, again.truncated) == (
        first.finished, first.failures, first.truncated,
    )  # fmt: skip
    assert inspected == [], "no journal was read again"


def refuse(*arguments: Any) -> Any:
    raise AssertionError("this was to be remembered")


def run_between(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], None]) -> None:
    """Have `action` happen once, just before the shard of that number is inspected."""
    inspect = snapshot.inspect_shard
    left = [action]

    def first_act(run_dir: Any, shard: Any, *rest: Any) -> Any:
        if shard.number == number and left:
            left.pop()()
        return inspect(run_dir, shard, *rest)

    monkeypatch.setattr(snapshot, "inspect_shard", first_act)


def test_a_shard_that_is_published_while_it_is_read_is_no_damage(
    half_done: Path, monkeypatch: pytest.MonkeyPatch, synthia: Command
) -> None:
    later = half_done.parent / "later"
    shutil.copytree(half_done, later)
    flags = ("--set", "engine.fail_every=100", "--max-tokens", "20")
    done = synthia("run", "q.jsonl", "--engine", "scripted", "--pool", "local", *flags, "-o", "later")
    assert done.returncode == 0, done.stderr

    def publish() -> None:
        """Put in place what the run has come to: parts whose intents were not there a moment ago."""
        shutil.rmtree(half_done)
        shutil.copytree(later, half_done)

    snapshots = open_snapshots(half_done)
    run_between(monkeypatch, 2, publish)
    monkeypatch.setattr(snapshot, "find_running", lambda run_dir: "somebody")
    states = snapshots.read()
    assert [state.finished + state.failed for state in states] == [1000, 1000, 1000]


def test_damage_where_nobody_writes_is_reported_at_once(half_done: Path) -> None:
    part = next((half_done / "data").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="was altered"):
        read_status(half_done)


def test_a_page_says_it_all_in_words(half_done: Path) -> None:
    status = read_status(half_done)
    lines = describe_status(status)
    assert lines[0] == "q  interrupted, attempt 1"
    assert lines[1].startswith(f"samples   {status.finished + status.failed:,} of 3,000 (")
    assert f"{status.failed} failed" in lines[1]
    assert f"{status.truncated:,} of them cut off at max_tokens" in lines[1]
    assert lines[2] == f"failures  scripted_failure {status.failed}"
    assert not any(line.startswith("workers") for line in lines), "nobody works"
    assert lines[-1].startswith("next      cd ")
    assert describe_briefly(status).startswith("interrupted ")


def test_a_run_that_still_reads_its_input_is_not_no_run(tmp_path: Path, synthia: Command) -> None:
    (tmp_path / "out/.synthia").mkdir(parents=True)
    (tmp_path / "out/.synthia/lock").touch()
    done = synthia("status", "out")
    assert done.returncode == 2
    assert "reading its input, try again in a moment" in done.stderr


def test_a_complete_run_names_what_comes_next(tmp_path: Path, synthia: Command) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "What is two squared?"}])
    assert synthia("run", "q.jsonl", *SCRIPTED, "--deadline", "1h").returncode == 0
    status = json.loads(synthia("status", "out", "--json").stdout)
    assert status["state"] == "complete"
    assert status["owner"] is None
    assert status["left_seconds"] is None
    assert status["next"] == "synthia-batch report out"
    watched = synthia("status", "out", "--watch")
    assert watched.stdout.splitlines()[0] == "q  complete, attempt 1", "there is nothing to wait for"


@pytest.fixture
def home(tmp_path: Path, synthia: Command) -> Path:
    """The directory of a complete run in "out"."""
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    assert synthia("run", "q.jsonl", *SCRIPTED).returncode == 0
    return tmp_path


def test_a_held_lock_that_the_kernels_list_does_not_show_is_no_interruption(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_find_holder", lambda path: None)  # as in another PID namespace
    out = RunDir(home / "out")
    out.manifest.unlink(missing_ok=True)
    assert read_status(out.root).state == "interrupted"
    holder = RunLock(out, datetime.now().astimezone())
    holder.take()
    try:
        found = read_status(out.root)
        assert found.state == "unknown: its lock is held by a process that is not visible here"
        assert found.is_going_on
    finally:
        holder.release()
    assert read_status(out.root).state == "interrupted"


def test_no_worker_is_loading_once_the_run_has_ended(home: Path) -> None:
    with RunDir(home / "out").events.open("a") as history:
        history.write(json.dumps(event("worker_loading", 0, worker=7, epoch=9)) + "\n")
    assert {worker.worker: worker.state for worker in read_status(home / "out").workers}[7] == "ended"


def test_without_a_directory_the_runs_are_listed_the_newest_first(synthia: Command, tmp_path: Path) -> None:
    assert "no runs in outputs/" in synthia("status").stderr
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    for name in ("older", "newer"):
        job = ("--engine", "scripted", "--pool", "local", "-o", f"outputs/{name}")
        assert synthia("run", "q.jsonl", *job).returncode == 0
    listed = synthia("status").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["outputs/newer", "outputs/older"]
    assert "complete 1/1 (100%)" in listed[0]


def test_a_page_is_erased_with_the_rows_that_its_lines_take_now() -> None:
    page = pages.Page()
    page._lines = ["x" * 69, "y" * 10, "\u6f22" * 30]
    assert page._erase(70) == "\x1b[3F\x1b[J"
    assert page._erase(40) == "\x1b[5F\x1b[J"
    assert pages._cut("\u6f22" * 5, 7) == "\u6f22" * 3
