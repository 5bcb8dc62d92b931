"""Both pools give back what an engine has not begun."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_jsonl

from synthia_batch.core.types import Request
from synthia_batch.job.loading.merge import Layer
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.workers.pools import open_pool
from synthia_batch.workers.pools.base import (
    Pool,
    PoolEvent,
    SamplesEnded,
    SamplesReturned,
    WorkerReady,
    WorkerSpec,
    WorkerStepped,
)


def poll_until(pool: Pool, is_enough: Callable[[list[PoolEvent]], bool]) -> list[PoolEvent]:
    events: list[PoolEvent] = []
    deadline = time.monotonic() + 90
    while not is_enough(events):
        assert time.monotonic() < deadline, events
        events += pool.poll(0.2)
    return events


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_recalled_sample_is_given_back_and_not_made(tmp_path: Path, kind: str) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "x"}])
    values = {
        "input": {"path": source},
        "pool": {"kind": kind, "workers": 1},
        "engine": {"kind": "scripted", "latency_ms": 4000, "max_num_seqs": 2},
    }
    job = resolve_job([Layer(origin="argument", values=values)])
    worker_spec = WorkerSpec(
        engine=job.engine, canaries=None, log_path=lambda index: tmp_path / f"{index}.log"
    )
    pool = open_pool(job.pool, worker_spec)
    pool.start()
    try:
        poll_until(pool, lambda events: any(isinstance(event, WorkerReady) for event in events))
        pool.feed(0, [Request(ordinal=n, token_ids=b"x", seed=n) for n in range(6)])
        poll_until(
            pool, lambda events: any(isinstance(e, WorkerStepped) and e.busy_seconds > 0 for e in events)
        )
        pool.recall(0)
        told = poll_until(pool, lambda events: any(isinstance(event, SamplesReturned) for event in events))
        told += poll_until(
            pool, lambda events: any(isinstance(event, SamplesEnded) for event in [*told, *events])
        )
    finally:
        pool.stop()
    returned = [ordinal for e in told if isinstance(e, SamplesReturned) for ordinal in e.ordinals]
    ended = [outcome.ordinal for e in told if isinstance(e, SamplesEnded) for outcome in e.outcomes]
    assert sorted(returned) == [2, 3, 4, 5]
    assert sorted(ended) == [0, 1]
