"""Engines larger than a machine, placed on real raylets that claim GPUs; no GPU is there."""

import dataclasses
import os
from collections.abc import Iterator

import pytest
from conftest import NEEDS_VLLM
from test_engine_environment import SPEC

from synthia_batch.job.resolved import PoolSpec
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.vllm.arguments import engine_arguments

pytestmark = [pytest.mark.long, pytest.mark.timeout(200)]
ACROSS = dataclasses.replace(SPEC, device="cuda", tensor_parallel_size=2, pipeline_parallel_size=3)
WITHIN = dataclasses.replace(SPEC, device="cuda", tensor_parallel_size=2, pipeline_parallel_size=2)


@pytest.fixture(scope="module")
def placer_of() -> Iterator[object]:
    """Three machines, two of which claim four GPUs each; returns what makes a Placer there."""
    import ray
    from ray.cluster_utils import Cluster

    from synthia_batch.workers.pools.ray_placement import Placer
    from synthia_batch.workers.pools.ray_session import RaySession

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=4)
    cluster.wait_for_nodes()
    spec = PoolSpec(
        kind="ray", workers=None, ray_address=cluster.address, watchdog_seconds=300, load_timeout_seconds=3600
    )
    session = RaySession(spec)
    session.open()
    try:
        yield lambda engine: Placer(engine, session)
    finally:
        session.close()
        ray.shutdown()
        cluster.shutdown()


def locate(reservation) -> object:  # type: ignore[no-untyped-def]
    import ray

    return ray.get(reservation.start_actor().locate.remote(), timeout=60)


def list_nodes_of(reservation) -> list[str]:  # type: ignore[no-untyped-def]
    from ray.util.placement_group import placement_group_table

    return list(placement_group_table(reservation.group)["bundles_to_node_id"].values())


def test_an_engine_within_a_machine_has_all_its_gpus_there(placer_of) -> None:  # type: ignore[no-untyped-def]
    placer = placer_of(WITHIN)
    assert placer.count_engines() == 2
    reservations = [placer.reserve() for _ in range(2)]
    try:
        nodes = {locate(reservation).node for reservation in reservations}  # type: ignore[attr-defined]
        assert len(nodes) == 2
        assert not any(reservation.spans_nodes for reservation in reservations)
    finally:
        for reservation in reservations:
            reservation.release()


def test_an_engine_larger_than_a_machine_is_spread_by_whole_stages(placer_of) -> None:  # type: ignore[no-untyped-def]
    placer = placer_of(ACROSS)
    assert placer.count_engines() == 1
    reservation = placer.reserve()
    try:
        location = locate(reservation)
        nodes = list_nodes_of(reservation)
        assert reservation.spans_nodes
        assert not reservation.splits_a_stage
        assert sorted(nodes.count(node) for node in set(nodes)) == [2, 4]
        assert location.node == nodes[0]  # type: ignore[attr-defined]
    finally:
        reservation.release()


def test_what_is_given_back_can_be_reserved_again(placer_of) -> None:  # type: ignore[no-untyped-def]
    for _ in range(2):
        reservation = placer_of(ACROSS).reserve()
        locate(reservation)
        reservation.release()


@NEEDS_VLLM
def test_vllm_accepts_the_group_and_ranks_each_stage_on_one_machine(placer_of) -> None:  # type: ignore[no-untyped-def]
    """vLLM's own check of a group and its own order of ranks, called where the engine's core calls them."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def ask_vllm() -> list[str]:
        from ray.util import get_current_placement_group
        from vllm.config import ParallelConfig
        from vllm.platforms import current_platform
        from vllm.v1.executor.ray_utils import get_bundles_sorted_by_node, initialize_ray_cluster

        type(current_platform).ray_device_key = "GPU"  # The CPU build has none.
        group = get_current_placement_group()
        config = ParallelConfig(
            tensor_parallel_size=2,
            pipeline_parallel_size=3,
            distributed_executor_backend="ray",
            placement_group=group,
        )
        initialize_ray_cluster(config, require_gpu_on_driver=False)
        return [node for _, node, _ in get_bundles_sorted_by_node(config.placement_group)]

    reservation = placer_of(ACROSS).reserve()
    try:
        where = PlacementGroupSchedulingStrategy(
            placement_group=reservation.group, placement_group_bundle_index=0
        )
        task = ray.remote(ask_vllm).options(num_cpus=1, scheduling_strategy=where)
        nodes = ray.get(task.remote(), timeout=120)
    finally:
        reservation.release()
    assert len(nodes) == 6
    assert all(nodes[rank] == nodes[rank + 1] for rank in (0, 2, 4))


def test_vllm_is_told_which_executor_to_use() -> None:
    def backend(engine, placement: Placement) -> object:  # type: ignore[no-untyped-def]
        return engine_arguments(engine, placement).get("distributed_executor_backend")

    assert backend(WITHIN, Placement()) == "mp"
    assert backend(ACROSS, Placement(spans_nodes=True)) == "ray"
    assert backend(dataclasses.replace(SPEC, device="cuda"), Placement()) is None
    said = dataclasses.replace(WITHIN, settings={"distributed_executor_backend": "ray"})
    assert backend(said, Placement()) == "ray", "what the user says goes before"
