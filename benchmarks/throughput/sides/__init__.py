"""The sides of the comparison, one file each."""

from collections.abc import Mapping, Sequence

from benchmarks.throughput.sides.bare_actors import BareActors
from benchmarks.throughput.sides.base import Side
from benchmarks.throughput.sides.cards_loop import CardsLoop
from benchmarks.throughput.sides.ours import Ours
from benchmarks.throughput.sides.ray_data import RayData
from benchmarks.throughput.sides.run_batch import RunBatch

SIDES: Mapping[str, Sequence[Side]] = {
    "ours": (Ours(determinism="strict"),),
    "ours-fast": (Ours(determinism="fast"),),
    "bare": (BareActors(determinism="fast"),),
    "bare-strict": (BareActors(determinism="strict"),),
    "run-batch": (RunBatch(variant="plain"), RunBatch(variant="eager"), RunBatch(variant="two engines")),
    "ray-data": (RayData(variant="concurrency 1"), RayData(variant="concurrency 2")),
    "cards": (CardsLoop(),),
}
"""By the name that `--sides` knows. Of several variants each is tried once, and the best is measured."""
