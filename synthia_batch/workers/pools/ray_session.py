"""A Ray of a job's own without the processes that are of use to clusters and to people looking on.

Beside its server and its node manager `ray.init` starts, whatever it is told, the autoscaler's monitor
(there is nothing to scale), the dashboard's API server (there is no dashboard) and the log monitor (what
workers print goes to files of this package). Each is a Python process that needs a second of a core just
when the engines load; `ray.init` waits for the second of them, and `ray.shutdown` for the first.

The Ray that a job's workers live in: one of the job's own, or a cluster that was there before.

The job's own listens on loopback only and ends with the job. A cluster is joined and left as it
was found: nothing of the job is detached, so Ray removes what a killed job leaves there.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayError

from synthia_batch.core.hardware import list_cores
from synthia_batch.errors import PoolFailed
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.workers.pools.guard import Guard
from synthia_batch.workers.pools.ray_address import check_form, probe_head

_SPARED = ("start_monitor", "start_api_server", "start_log_monitor")
"""Methods of Ray's own `Node`, each of which starts one process (Ray 2.60.0, _private/node.py)."""


@contextmanager
def spared_processes() -> Iterator[None]:
    """Have a Ray that is started in the block do without them. One that has renamed them starts whole."""
    spared = {name: getattr(Node, name) for name in _SPARED if hasattr(Node, name)}
    for name in spared:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, method in spared.items():
            setattr(Node, name, method)


def _start_nothing(_node: Node, **_how: object) -> None:
    """Stand in for one of them."""


_OBJECT_STORE_BYTES = 128 * 2**20
"""Ray would take a third of the memory; prompts and answers travel inside the calls."""


class RaySession:
    """A connection to Ray. A Ray that this process is connected to already is used and kept."""

    def __init__(self, spec: PoolSpec) -> None:
        self._spec = spec
        self._guard: Guard | None = None
        self._is_ours = False

    @property
    def can_grow(self) -> bool:
        """Whether machines may join while the job runs."""
        return self._guard is None

    def open(self) -> None:
        """Join the cluster that the job names, or start a Ray for it.

        Raises:
            PoolFailed: It cannot be reached or started.
            UsageError: The address is of a kind that cannot be joined.
        """
        if ray.is_initialized():
            return
        try:
            if self._spec.ray_address in (None, "local"):
                self._start()
            else:
                self._join(str(self._spec.ray_address))
        except (RayError, OSError, RuntimeError, ConnectionError, ValueError) as exc:
            raise PoolFailed(self._explain(exc)) from exc
        self._is_ours = True
        # Ray prints a paragraph on stderr for each process that dies, log_to_driver or not. The
        # driver says what there is to say.
        ray_worker.print_to_stdstream = lambda data, ignore_prefix: None

    def close(self) -> None:
        """Leave the cluster; end the Ray that was started here."""
        if self._is_ours:
            ray.shutdown()
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def list_counts(self, kind: str) -> list[int]:
        """Return how many CPUs or GPUs each machine has, those that have any."""
        counts = [int(node["Resources"].get(kind, 0)) for node in self._list_nodes()]
        return [count for count in counts if count]

    def is_alive(self, node: str) -> bool:
        """Whether the machine `node` is part of the cluster."""
        return any(entry["NodeID"] == node for entry in self._list_nodes())

    def _list_nodes(self) -> list[dict[str, Any]]:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return [node for node in nodes if node["Alive"]]

    def _explain(self, exc: Exception) -> str:
        address = self._spec.ray_address
        if address in (None, "local"):
            return f"Ray could not be started on this machine: {exc}"
        return (
            f"the Ray cluster at {address} could not be joined: {exc}. Ray and Python must be of the same "
            "versions as there, and where the cluster asks for a token, RAY_AUTH_MODE and RAY_AUTH_TOKEN too"
        )

    def _join(self, address: str) -> None:
        check_form(address)
        # Ray's own way to find a cluster on this machine; other addresses are probed as they were said.
        head = canonicalize_bootstrap_address(address) if address == "auto" else address
        probe_head(str(head))
        ray.init(head, log_to_driver=False, logging_level=logging.ERROR)

    def _start(self) -> None:
        self._guard = Guard()
        self._guard.start()
        # Ray turns a loopback address that it is given into the machine's own, which others can
        # reach, and listens everywhere. With this switch, meant for laptops, it stays on loopback.
        before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:
            with self._guard.marked(), spared_processes():
                ray.init(
                    # Keeps RAY_ADDRESS, and a Ray that was left running on this machine, out of it.
                    "local",
                    num_cpus=max(len(list_cores()), self._spec.workers or 0),
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                )
            self._guard.watch_session(str(ray.get_runtime_context().get_session_name()))
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before
