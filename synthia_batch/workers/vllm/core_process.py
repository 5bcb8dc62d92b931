"""Notices the death of a vLLM engine core that is a process of its own.

vLLM's synchronous client marks itself dead then and closes its sockets, but does not wake a `step`
that waits for the next output: killed with SIGKILL, a core leaves it waiting for ever. The core in
turn sees to its tensor-parallel and pipeline-parallel workers: without one of them it says that it
is dead, and `step` raises EngineDeadError by itself.
"""

import threading
import time
import weakref
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

_LOOK_SECONDS = 0.5


def has_own_process(client: Any) -> bool:
    """Whether the core of `client`, the engine's core client, is another process than this one."""
    return hasattr(client, "outputs_queue") and hasattr(client, "resources")


def watch_core(client: Any) -> None:
    """Have a `step` that waits for `client` fail once the core is dead. One in this process dies with it."""
    if has_own_process(client):
        watch = threading.Thread(target=_watch, args=(weakref.ref(client),), name="core-watch", daemon=True)
        watch.start()


def _watch(reference: "weakref.ref[Any]") -> None:
    while (client := reference()) is not None:
        if client.resources.engine_dead:
            # Behind all that the core had said: what it finished is still handed on.
            client.outputs_queue.put_nowait(EngineDeadError())
            return
        del client
        time.sleep(_LOOK_SECONDS)
