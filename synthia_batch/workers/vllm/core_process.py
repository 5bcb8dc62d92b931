"""Detects the death of a vLLM engine core that runs in its own process.

vLLM's synchronous client then marks itself dead and closes its sockets, but does not wake a `step` that
waits for the next output: if the core is killed with SIGKILL, `step` waits forever. The core itself watches
its tensor-parallel and pipeline-parallel workers: if one is missing, `step` raises EngineDeadError.
"""

import threading
import time
import weakref
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

_LOOK_SECONDS = 0.5


def has_own_process(client: Any) -> bool:
    """Whether the core of `client`, the engine's core client, runs in another process."""
    return hasattr(client, "outputs_queue") and hasattr(client, "resources")


def watch_core(client: Any) -> None:
    """Make a `step` that waits for `client` fail once the core's process is dead."""
    if has_own_process(client):
        watch = threading.Thread(target=_watch, args=(weakref.ref(client),), name="core-watch", daemon=True)
        watch.start()


def _watch(reference: "weakref.ref[Any]") -> None:
    while (client := reference()) is not None:
        if client.resources.engine_dead:
            # Queued last, so that everything the core finished is still delivered.
            client.outputs_queue.put_nowait(EngineDeadError())
            return
        del client
        time.sleep(_LOOK_SECONDS)
