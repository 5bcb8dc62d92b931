"""The totals of an attempt, on a clock that is passed in; and the events of a real run."""

import json
from pathlib import Path
from typing import Any

from conftest import Command, write_jsonl

from synthia_batch.core.events import LoggedEvent
from synthia_batch.core.types import Failed, Finished
from synthia_batch.scheduler.progress import FIRST_INTERVAL_SECONDS, ProgressTracker
from synthia_batch.storage.events import read_events
from synthia_batch.workers.pools.base import WorkerStepped


def made(prompt_tokens: int, completion_tokens: int) -> Finished:
    return Finished(
        ordinal=0, response="", reasoning=None, finish_reason="stop",
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
    )  # fmt: skip


def step(
    worker: int, epoch: int, *, steps: int, busy_seconds: float, cached_prompt_tokens: int
) -> WorkerStepped:
    return WorkerStepped(
        worker=worker, epoch=epoch, steps=steps,
        busy_seconds=busy_seconds, cached_prompt_tokens=cached_prompt_tokens,
    )  # fmt: skip


def as_logged(event: LoggedEvent) -> dict[str, Any]:
    """Return the line of the event in events.jsonl, but for its time."""
    logged: dict[str, Any] = json.loads(json.dumps({"kind": event.kind, **event.fields}))
    return logged


def test_an_event_tells_totals_of_the_attempt() -> None:
    progress = ProgressTracker(100.0)
    progress.add_ended([made(10, 3), made(20, 4), Failed(ordinal=2, code="x", message="y")])
    progress.update_worker(step(1, 7, steps=5, busy_seconds=1.5, cached_prompt_tokens=16), now=102.0)
    assert as_logged(progress.make_event(103.0, {1: 2, 3: 9})) == {
        "kind": "progress",
        "elapsed_seconds": 3.0,
        "samples": 3,
        "tokens": 7,
        "prompt_tokens": 30,
        "cached_prompt_tokens": 16,
        "truncated": 0,
        "failures": {},
        "workers": [{"worker": 1, "busy_seconds": 1.5, "heard_seconds": 2.0, "in_flight": 2, "steps": 5}],
    }


def test_a_worker_that_starts_again_goes_on_counting_and_its_late_words_do_not() -> None:
    progress = ProgressTracker(0.0)
    progress.update_worker(step(0, 1, steps=10, busy_seconds=4.0, cached_prompt_tokens=100), now=5.0)
    progress.update_worker(step(0, 2, steps=1, busy_seconds=0.5, cached_prompt_tokens=10), now=9.0)
    progress.update_worker(step(0, 1, steps=12, busy_seconds=5.0, cached_prompt_tokens=200), now=9.5)
    event = as_logged(progress.make_event(10.0, {}))
    assert event["workers"] == [
        {"worker": 0, "busy_seconds": 4.5, "heard_seconds": 9.0, "in_flight": 0, "steps": 11}
    ]
    assert event["cached_prompt_tokens"] == 110


def test_events_of_a_night_are_bounded() -> None:
    progress, now, events = ProgressTracker(0.0), 0.0, 0
    while now < 12 * 3600:
        now += 0.2
        if progress.is_due(now):
            progress.make_event(now, {})
            events += 1
            if events == 1:
                assert abs(now - FIRST_INTERVAL_SECONDS) < 0.3
    assert 5_000 < events < 11_000


def test_a_run_leaves_its_progress_in_its_history_and_not_in_its_data(
    synthia: Command, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": f"Tell me about {n}."} for n in range(120)])
    done = synthia(
        "run", source, "--engine", "scripted", "--pool", "local", "--workers", "2", "-o", "out",
        "--set", "engine.latency_ms=400", "--set", "engine.max_num_seqs=8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [e for e in read_events(tmp_path / "out/.synthia/events.jsonl") if e["kind"] == "progress"]
    assert len(events) >= 2, "one on the way and one at the end"
    last = events[-1]
    assert last["samples"] == 120
    assert last["tokens"] > 120
    assert last["prompt_tokens"] > 120
    assert last["cached_prompt_tokens"] == 0
    assert [worker["worker"] for worker in last["workers"]] == [0, 1]
    for worker in last["workers"]:
        assert worker["in_flight"] == 0
        assert worker["steps"] > 0
        assert 2 < worker["busy_seconds"] <= last["elapsed_seconds"]
    status = json.loads(synthia("status", "out", "--json").stdout)
    assert status["tokens_per_second"] > 0
    assert status["cached_prompt_share"] == 0
    assert 0.5 < status["busy_share"] <= 1
