"""Engines that share a GPU load one after the other. No Ray runs."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_engine_environment import SPEC

from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.job.sections import Pool
from synthia_batch.workers.canary import Loaded
from synthia_batch.workers.pools.base import WorkerLoading, WorkerSpec
from synthia_batch.workers.pools.local import LocalPool
from synthia_batch.workers.pools.ray_actor import Location
from synthia_batch.workers.pools.ray_pool import RayPool


def make_pool(monkeypatch: pytest.MonkeyPatch, engines_per_gpu: int) -> RayPool:
    spec = PoolSpec(
        kind="ray",
        workers=None,
        ray_address=None,
        watchdog_seconds=9,
        load_timeout_seconds=9,
        engines_per_gpu=engines_per_gpu,
    )
    engine = dataclasses.replace(SPEC, device="cuda")
    pool = RayPool(spec, WorkerSpec(engine=engine, canaries=None, log_path=lambda n: Path(f"{n}.log")))
    monkeypatch.setattr(pool, "_load", lambda handle, location: f"load {handle.index}")
    # Workers 0 and 1 on the first GPU, 2 on the second, 3 on another machine's first.
    for index, (node, gpu) in enumerate([("a", "0"), ("a", "0"), ("a", "1"), ("b", "0")]):
        location = Location(node=node, pid=1, cores=(0,), gpus=(gpu,))
        handle: Any = SimpleNamespace(
            index=index, epoch=index, location=location, waits_to_load=True, is_loading=False, pending=None,
            is_outdated=False,
        )  # fmt: skip
        handle.actor = SimpleNamespace(collect=SimpleNamespace(remote=lambda seconds, epoch: "collect"))
        pool._handles[index] = handle
    return pool


def list_loading(events: Any) -> list[int]:
    assert all(isinstance(event, WorkerLoading) for event in events)
    return [event.worker for event in events]


def test_engines_on_one_gpu_load_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(monkeypatch, 2)
    assert list_loading(pool._start_loads()) == [0, 2, 3]
    assert list_loading(pool._start_loads()) == []
    first: Any = pool._handles[0]
    first.take_answer = lambda: Loaded(facts=None, canary=None)  # type: ignore[arg-type]
    pool._advance(first)
    assert list_loading(pool._start_loads()) == [1]


def test_an_engine_that_dies_while_loading_lets_the_next_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(monkeypatch, 2)
    pool._start_loads()
    del pool._handles[0]
    assert list_loading(pool._start_loads()) == [1]


def test_engines_with_gpus_of_their_own_load_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_loading(make_pool(monkeypatch, 1)._start_loads()) == [0, 1, 2, 3]


def test_the_local_pool_shares_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = make_pool(monkeypatch, 2)
    with pytest.raises(UsageError, match=r"leave out pool\.engines_per_gpu"):
        LocalPool(shared._spec, shared._worker_spec).start()


def test_an_engine_of_several_gpus_shares_none() -> None:
    with pytest.raises(ValueError, match="an engine on several GPUs shares none"):
        Pool(engines_per_gpu=2, tensor_parallel_size=2)
    assert Pool(engines_per_gpu=2).engines_per_gpu == 2
