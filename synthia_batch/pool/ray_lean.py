"""A Ray of a job's own without the processes that are of use to clusters and to people looking on.

Beside its server and its node manager `ray.init` starts, whatever it is told, the autoscaler's monitor
(there is nothing to scale), the dashboard's API server (there is no dashboard) and the log monitor (what
workers print goes to files of this package). Each is a Python process that needs a second of a core just
when the engines load; `ray.init` waits for the second of them, and `ray.shutdown` for the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ray._private.node import Node

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
