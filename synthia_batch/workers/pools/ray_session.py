"""The Ray of a job's workers: its own, or an existing cluster.

The job's own Ray listens on loopback only and ends with the job. It starts without three processes that only
clusters need. A cluster is joined and left unchanged: the job detaches nothing, so Ray removes whatever a
killed job leaves there.
"""

import ctypes
import logging
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

from synthia_batch.core.errors import PoolFailed, SynthiaBatchError
from synthia_batch.core.hardware import list_cores
from synthia_batch.job.resolved import PoolSpec
from synthia_batch.workers.pools.guard import Guard
from synthia_batch.workers.pools.ray_address import check_form, probe_head

_CLUSTER_PROCESSES = ("start_monitor", "start_api_server", "start_log_monitor")
"""Methods of Ray's `Node`, each of which starts one process (Ray 2.60.0, _private/node.py)."""
_TOKEN, _MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"
_TOKEN_VARIABLES = (_TOKEN, "RAY_AUTH_TOKEN_PATH")
"""Where a user says which token Ray is to use."""
_OBJECT_STORE_BYTES = 128 * 2**20
"""Ray would reserve a third of the memory; prompts and answers are sent inside the calls."""
_OWN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGACTION_BYTES = 1024
"""More than any C library's `struct sigaction` takes; Linux's has about 150."""


class RaySession:
    """A connection to Ray. If this process is already connected, that Ray is used and kept."""

    def __init__(self, spec: PoolSpec) -> None:
        self._spec = spec
        self._guard: Guard | None = None
        self._is_ours = False
        self._turns_tokens_on = _MODE not in os.environ

    @property
    def can_grow(self) -> bool:
        """Whether machines may join while the job runs."""
        return self._guard is None

    def open(self) -> None:
        """Join the job's cluster, or start a Ray for the job.

        Raises:
            PoolFailed: It cannot be reached or started.
        """
        if ray.is_initialized():
            return
        try:
            with _own_signals():
                if self._spec.ray_address in (None, "local"):
                    self._start()
                else:
                    self._join(str(self._spec.ray_address))
        except SynthiaBatchError:
            raise
        except Exception as exc:  # Ray raises plain ones too, such as for a start that times out.
            raise PoolFailed(self._explain(exc)) from exc
        self._is_ours = True
        # Ray prints a paragraph on stderr for each process that dies, even without log_to_driver. The
        # driver reports these itself.
        ray_worker.print_to_stdstream = lambda data, ignore_prefix: None

    def close(self) -> None:
        """Leave the cluster, or end the job's own Ray."""
        if self._is_ours:
            ray.shutdown()
            self._forget_token()
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def _forget_token(self) -> None:
        """Leave the process as it was: Ray turns tokens on, and the next one here would need ours."""
        if self._guard is not None and self._turns_tokens_on:
            os.environ.pop(_MODE, None)
            Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    def list_counts(self, kind: str) -> list[int]:
        """Return the number of CPUs or GPUs of each machine that has any."""
        counts = [int(node["Resources"].get(kind, 0)) for node in self._list_nodes()]
        return [count for count in counts if count]

    def list_machines(self) -> list[tuple[int, int]]:
        """Return the numbers of GPUs and CPUs of each machine."""
        machines = [node["Resources"] for node in self._list_nodes()]
        return [(int(resources.get("GPU", 0)), int(resources.get("CPU", 0))) for resources in machines]

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
            f"the Ray cluster at {address} could not be joined: {exc}. Use the cluster's versions of Ray and "
            "Python, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN if it requires a token"
        )

    def _join(self, address: str) -> None:
        check_form(address)
        # Ray's own way to find a cluster on this machine; other addresses are probed unchanged.
        head = canonicalize_bootstrap_address(address) if address == "auto" else address
        probe_head(str(head))
        ray.init(head, log_to_driver=False, logging_level=logging.ERROR)

    def _start(self) -> None:
        self._guard = Guard()
        self._guard.start()
        # Ray replaces a loopback address with the machine's own and listens on all interfaces. This
        # switch, meant for laptops, keeps it on loopback.
        before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:
            with self._guard.marked(), _own_token(), _without_cluster_processes():
                ray.init(
                    # Ignores RAY_ADDRESS and any Ray already running on this machine.
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


@contextmanager
def _own_token() -> Iterator[None]:
    """Give the Ray that starts in the block a token of its own, unless the user has chosen one.

    Otherwise Ray writes one to ~/.ray/auth_token, which every user of the machine may read. Its processes
    inherit this one, and no file has it.
    """
    # Ray itself sets the mode to `token` when it starts.
    is_off = os.environ.get(_MODE, "token").lower() != "token"
    if is_off or any(os.environ.get(name) for name in _TOKEN_VARIABLES):
        yield
        return
    os.environ[_TOKEN] = secrets.token_hex(32)
    # Ray reads the token once and keeps it, also that of an earlier Ray of this process.
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        del os.environ[_TOKEN]


@contextmanager
def _without_cluster_processes() -> Iterator[None]:
    """Start no _CLUSTER_PROCESSES within the block; if Ray renames a method, its process does start.

    `ray.init` always starts the autoscaler's monitor (there is nothing to scale), the dashboard's API server
    (there is no dashboard) and the log monitor (workers print to files of this package). Each is a Python
    process that takes a second of a core while the engines load; `ray.init` waits for the second,
    `ray.shutdown` for the first.
    """
    methods = {name: getattr(Node, name) for name in _CLUSTER_PROCESSES if hasattr(Node, name)}
    for name in methods:
        setattr(Node, name, lambda _node, **_options: None)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's signal handlers, which `ray.init` replaces, and Ray's processes from a hangup.

    Ray's handler prints a stack for SIGTERM before it calls ours. Python sets handlers in the main thread
    only, so the C library is called. A process started in the block inherits the blocked SIGHUP: else the
    terminal's end would end the engines while the run drains.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    actions = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in _OWN_SIGNALS}
    for number, action in actions.items():
        libc.sigaction(number, None, action)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, action in actions.items():
            libc.sigaction(number, action, None)
