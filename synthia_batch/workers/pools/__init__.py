"""Pools of workers: `base` is the contract, `ray_pool` and `local` implement it."""

import os

from synthia_batch.core.telemetry import keep_private
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.workers.pools.base import Pool, WorkerSpec

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it on import.


def open_pool(spec: PoolSpec, worker_spec: WorkerSpec) -> Pool:
    """Return the pool of `spec`, not started."""
    keep_private()  # Before ray is imported, which reads its switch.
    if spec.kind == "local":
        from synthia_batch.workers.pools.local import LocalPool

        return LocalPool(spec, worker_spec)
    from synthia_batch.workers.pools.ray_pool import RayPool

    return RayPool(spec, worker_spec)
