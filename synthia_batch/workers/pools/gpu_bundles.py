"""How many engines fit on a cluster's GPUs, and the bundles of Ray resources for one. Does not import Ray.

Tensor-parallel processes exchange data in every layer, so each group should be on one machine. Pipeline
stages exchange data only once each, so an engine too large for any machine is split by stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PARTS_OF_A_GPU = 10_000
"""Ray counts in ten-thousandths of a resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """The parts of a model: `tensor_parallel` in each of `stages` pipeline stages.

    `per_gpu` engines share a GPU if each has only one part.
    """

    tensor_parallel: int
    stages: int
    per_gpu: int = 1

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The bundles of one engine; its worker runs in the first.

    With `spans_nodes` each bundle has one GPU, as vLLM requires, used by a separate Ray process. Without it
    the worker has all GPUs, and vLLM starts its own child processes.
    """

    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    spans_nodes: bool


def lay_out(gpus: Sequence[int], shape: EngineShape, cpus: int = 1) -> Layout:
    """Return the bundles of an engine of `shape` with `cpus` CPUs; `gpus` lists the GPUs of each machine.

    The engine gets one machine if any is large enough, or if it does not fit at all yet: Ray then waits for
    a large enough machine.
    """
    own = {"CPU": cpus} if cpus else {}
    if _fits_machine(gpus, shape) or not _count_spread(gpus, shape):
        share = shape.gpus if shape.per_gpu == 1 else _PARTS_OF_A_GPU // shape.per_gpu / _PARTS_OF_A_GPU
        return Layout(bundles=({"GPU": share, **own},), strategy="STRICT_PACK", spans_nodes=False)
    rest = ({"GPU": 1.0},) * (shape.gpus - 1)
    return Layout(bundles=({"GPU": 1.0, **own}, *rest), strategy="PACK", spans_nodes=True)


def count_engines(gpus: Sequence[int], shape: EngineShape) -> int:
    """Return how many engines of `shape` fit; `gpus` lists the GPUs of each machine."""
    if _fits_machine(gpus, shape):
        return sum(count // shape.gpus for count in gpus) * shape.per_gpu
    return _count_spread(gpus, shape)


def count_cpus(machines: Sequence[tuple[int, int]], shape: EngineShape) -> int:
    """Return the CPUs to reserve for an engine: 1, or 0 if machines with GPUs have fewer CPUs than engines.

    `machines` lists (GPUs, CPUs). A batch system may grant fewer cores than GPUs; no GPU must idle for that.
    """
    return int(all(cpus >= count_engines([gpus], shape) for gpus, cpus in machines if gpus))


def splits_a_stage(nodes: Sequence[str], tensor_parallel: int) -> bool:
    """Whether a stage is on two machines; `nodes` has the machine of each GPU.

    vLLM assigns GPUs machine by machine, so no stage is split if each machine has whole stages.
    """
    return any(nodes.count(node) % tensor_parallel for node in set(nodes))


def _fits_machine(gpus: Sequence[int], shape: EngineShape) -> bool:
    return any(count >= shape.gpus for count in gpus)


def _count_spread(gpus: Sequence[int], shape: EngineShape) -> int:
    return sum(count // shape.tensor_parallel for count in gpus) // shape.stages
