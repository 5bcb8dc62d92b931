"""Places engines in Ray: the resources reserved for one, and the core that it is pinned to."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.pools.gpu_bundles import (
    EngineShape,
    Layout,
    count_cpus,
    count_engines,
    lay_out,
    splits_a_stage,
)
from synthia_batch.workers.pools.ray_actor import EngineActor, Location
from synthia_batch.workers.pools.ray_session import RaySession

_KEEP_ALL_GPUS_VISIBLE = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Ray hides all GPUs from an actor without one, but vLLM needs to see their kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The resources of one engine. CPU and scripted engines have no `group`: they use one CPU."""

    group: PlacementGroup | None = None
    layout: Layout | None = None
    shape: EngineShape

    @property
    def spans_nodes(self) -> bool:
        """Whether the engine's pipeline stages are on several machines."""
        return self.layout is not None and self.layout.spans_nodes

    @property
    def splits_a_stage(self) -> bool:
        """Whether Ray had to place a tensor-parallel group on two machines."""
        if not self.spans_nodes or self.group is None:
            return False
        nodes = placement_group_table(self.group)["bundles_to_node_id"]
        return splits_a_stage(list(nodes.values()), self.shape.tensor_parallel)

    def start_actor(self) -> Any:
        """Return the handle of a new actor with these resources. Ray starts it once they are free."""
        options: dict[str, Any] = {
            "num_cpus": 1 if self.layout is None else self.layout.bundles[0].get("CPU", 0),
            "num_gpus": 0 if self.layout is None or self.spans_nodes else self.layout.bundles[0]["GPU"],
            # A poll, a feed and a stop at the same time.
            "max_concurrency": 4,
            # The driver restarts workers itself, under a new epoch.
            "max_restarts": 0,
        }
        if self.spans_nodes:
            # Only here: for a runtime_env Ray starts a special process, which takes seconds. Other
            # variables are set before vLLM is imported.
            options["runtime_env"] = {"env_vars": _KEEP_ALL_GPUS_VISIBLE}
        if self.group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self.group, placement_group_bundle_index=0
            )
        return ray.remote(EngineActor).options(**options).remote()

    def release(self) -> None:
        """Release the resources; Ray kills what still runs there."""
        if self.group is not None:
            remove_placement_group(self.group)


class Placer:
    """Places the engines of one job. `takes_gpus`: they run on GPUs."""

    def __init__(self, spec: EngineSpec, session: RaySession, engines_per_gpu: int = 1) -> None:
        self._session = session
        self.takes_gpus = spec.kind == "vllm" and spec.device != "cpu"
        self._pins_cores = spec.kind == "vllm" and spec.device == "cpu"
        self._shape = EngineShape(
            tensor_parallel=spec.tensor_parallel_size,
            stages=spec.pipeline_parallel_size,
            per_gpu=engines_per_gpu,
        )

    @property
    def needs(self) -> str:
        """The resources of one engine, as text."""
        if not self.takes_gpus:
            return "1 CPU"
        return f"{self._shape.gpus} GPU" if self._shape.per_gpu == 1 else f"1/{self._shape.per_gpu} GPU"

    @property
    def has(self) -> str:
        """The matching resources of the cluster, as text."""
        kind = "GPU" if self.takes_gpus else "CPU"
        counts = self._session.list_counts(kind)
        nodes = f" on {len(counts)} machines" if len(counts) > 1 else ""
        return f"{sum(counts)} {kind}{nodes}"

    def count_engines(self) -> int:
        """Return how many engines fit on all machines together."""
        if self.takes_gpus:
            return count_engines(self._session.list_counts("GPU"), self._shape)
        return sum(self._session.list_counts("CPU"))

    def reserve(self) -> Reservation:
        """Reserve the resources of one engine. Does not wait for them."""
        if not self.takes_gpus:
            return Reservation(shape=self._shape)
        machines = self._session.list_machines()
        gpus = [count for count, _ in machines if count]
        layout = lay_out(gpus, self._shape, count_cpus(machines, self._shape))
        group: PlacementGroup = placement_group(
            [dict(bundle) for bundle in layout.bundles], strategy=layout.strategy
        )
        return Reservation(group=group, layout=layout, shape=self._shape)

    def choose_core(self, location: Location, taken: Iterable[int | None]) -> int | None:
        """Return a core for a CPU engine at `location`, where other engines have `taken` theirs.

        If there are more engines than cores, they share them from the first on.
        """
        if not self._pins_cores:
            return None
        others = list(taken)
        free = [core for core in location.cores if core not in others] or list(location.cores)
        return free[len(others) % len(free)]
