"""How many engines a cluster's GPUs hold, and the bundles of Ray resources that one of them takes. Pure.

Tensor-parallel processes exchange data in every layer, so each such group is to be on one machine.
Pipeline stages exchange it once each, so an engine that no machine holds is spread by its stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """How many parts a model is split into: `tensor_parallel` in each of `stages` stages."""

    tensor_parallel: int
    stages: int

    @property
    def gpus(self) -> int:
        """GPUs of one engine."""
        return self.tensor_parallel * self.stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The bundles of one engine; its worker is in the first of them.

    With `spans_nodes` each bundle has one GPU, as vLLM wants it, and each GPU is a process of Ray's
    own. Without, all GPUs are the worker's, and vLLM starts its processes below it.
    """

    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    spans_nodes: bool


def lay_out(gpus: Sequence[int], shape: EngineShape) -> Layout:
    """Return the bundles of an engine of `shape` on machines with so many `gpus` each.

    On one machine where any is large enough, or where the engine has no room at all yet: Ray then
    waits for a machine that is.
    """
    if _holds_one(gpus, shape) or not _count_spread(gpus, shape):
        return Layout(bundles=({"GPU": shape.gpus, "CPU": 1},), strategy="STRICT_PACK", spans_nodes=False)
    rest = ({"GPU": 1.0},) * (shape.gpus - 1)
    return Layout(bundles=({"GPU": 1.0, "CPU": 1.0}, *rest), strategy="PACK", spans_nodes=True)


def count_engines(gpus: Sequence[int], shape: EngineShape) -> int:
    """Return how many engines of `shape` find room on machines with so many `gpus` each."""
    if _holds_one(gpus, shape):
        return sum(count // shape.gpus for count in gpus)
    return _count_spread(gpus, shape)


def splits_a_stage(nodes: Sequence[str], tensor_parallel: int) -> bool:
    """Whether some stage is on two machines, where `nodes` names the machine of each of the GPUs.

    vLLM goes through the machines one after the other, so none is where each has whole stages.
    """
    return any(nodes.count(node) % tensor_parallel for node in set(nodes))


def _holds_one(gpus: Sequence[int], shape: EngineShape) -> bool:
    return any(count >= shape.gpus for count in gpus)


def _count_spread(gpus: Sequence[int], shape: EngineShape) -> int:
    return sum(count // shape.tensor_parallel for count in gpus) // shape.stages
