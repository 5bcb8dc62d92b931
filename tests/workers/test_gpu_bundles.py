"""Which bundles an engine takes on which machines: arithmetic, no Ray."""

import pytest

from synthia_batch.workers.pools.gpu_bundles import (
    EngineShape,
    count_cpus,
    count_engines,
    lay_out,
    splits_a_stage,
)


def shape(tensor_parallel: int, stages: int) -> EngineShape:
    return EngineShape(tensor_parallel=tensor_parallel, stages=stages)


@pytest.mark.parametrize(
    ("gpus", "tensor_parallel", "stages", "engines"),
    [
        ([8], 1, 1, 8),
        ([8], 4, 2, 1),
        ([3, 3], 2, 1, 2),  # Not three: the GPUs left over are on two machines.
        ([8, 8], 8, 2, 1),
        ([8, 8, 8, 8], 8, 2, 2),
        ([4, 4, 4], 4, 2, 1),
        ([6, 6], 4, 2, 1),
        ([4, 4], 8, 1, 0),  # A tensor-parallel group is never spread.
        ([6, 2], 4, 2, 0),
        ([], 1, 1, 0),
    ],
)
def test_engines_are_counted_by_what_fits_on_machines(
    gpus: list[int], tensor_parallel: int, stages: int, engines: int
) -> None:
    assert count_engines(gpus, shape(tensor_parallel, stages)) == engines


def test_an_engine_that_a_machine_holds_stays_on_it() -> None:
    layout = lay_out([2, 8], shape(4, 2))
    assert layout.bundles == ({"GPU": 8, "CPU": 1},)
    assert (layout.strategy, layout.spans_nodes) == ("STRICT_PACK", False)


def test_an_engine_larger_than_a_machine_takes_a_bundle_for_each_gpu_as_vllm_wants_it() -> None:
    layout = lay_out([8, 8], shape(8, 2))
    assert len(layout.bundles) == 16
    assert all(bundle["GPU"] == 1 for bundle in layout.bundles)
    assert [bundle.get("CPU", 0) for bundle in layout.bundles] == [1] + [0] * 15
    assert (layout.strategy, layout.spans_nodes) == ("PACK", True)


@pytest.mark.parametrize("gpus", [[], [4, 4]])
def test_an_engine_without_room_waits_for_a_machine_that_holds_it(gpus: list[int]) -> None:
    assert not lay_out(gpus, shape(8, 1)).spans_nodes


def test_a_stage_on_two_machines_is_told_from_whole_ones() -> None:
    assert not splits_a_stage(["a", "b", "a", "b"], 2)
    assert not splits_a_stage(["a"] * 8 + ["b"] * 4, 4)
    assert splits_a_stage(["a"] * 6 + ["b"] * 2, 4)


def test_engines_that_share_a_gpu_take_a_fraction_of_it() -> None:
    shared = EngineShape(tensor_parallel=1, stages=1, per_gpu=3)
    assert count_engines([2, 1], shared) == 9
    layout = lay_out([2], shared)
    assert layout.bundles == ({"GPU": 0.3333, "CPU": 1},)
    assert 3 * layout.bundles[0]["GPU"] <= 1


@pytest.mark.parametrize(
    ("machines", "per_gpu", "cpus"),
    [
        ([(8, 64)], 1, 1),
        ([(8, 4)], 1, 0),  # Slurm's --cpus-per-task may be smaller than --gpus.
        ([(4, 4)], 2, 0),
        ([(0, 1), (2, 2)], 1, 1),  # Machines without GPUs do not count.
        ([(2, 8), (2, 1)], 1, 0),
    ],
)
def test_fewer_cores_than_gpus_leave_no_gpu_idle(
    machines: list[tuple[int, int]], per_gpu: int, cpus: int
) -> None:
    one = EngineShape(tensor_parallel=1, stages=1, per_gpu=per_gpu)
    assert count_cpus(machines, one) == cpus
    assert ("CPU" in lay_out([8], one, cpus).bundles[0]) == bool(cpus)
