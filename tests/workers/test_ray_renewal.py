"""Actors that stay for the next run. No Ray runs; tests/runner/test_pipeline.py has them in a pipeline."""

from typing import Any

import pytest
from test_shared_gpus import list_loading, make_pool

from synthia_batch.workers.canary import Loaded
from synthia_batch.workers.pools.base import WorkerReady


def test_what_is_loaded_adopts_and_what_loads_adopts_when_it_has_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = make_pool(monkeypatch, 1)
    pool.size = 4
    loaded, loading, placing, lost = (pool._handles[worker] for worker in range(4))
    loaded.waits_to_load, loading.waits_to_load, loading.is_loading = False, False, True
    placing.waits_to_load, placing.location = False, None
    del pool._handles[lost.index]
    started: list[int] = []
    monkeypatch.setattr(pool, "restart", started.append)
    pool._epochs = iter([7, 8, 9])  # type: ignore[assignment]

    assert list_loading(pool.renew(pool._worker_spec)) == [1, 0], "a load that hangs is noticed here, too"
    assert (loaded.epoch, loading.epoch, placing.epoch, started) == (7, 8, 9, [3])
    assert loaded.pending == "load 0", "nothing waits for the job before"
    answer: Any = lambda: Loaded(facts=None, canary=None)  # type: ignore[arg-type]  # noqa: E731
    loading.take_answer = loaded.take_answer = answer
    assert list_loading(pool._advance(loading)) == [1], "what it loaded for has ended"
    assert [type(event) for event in pool._advance(loading)] == [WorkerReady]
    assert [type(event) for event in pool._advance(loaded)] == [WorkerReady]
