"""What a job's processes shared in memory goes with them, also where all of them are killed at once."""

import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from synthia_batch.workers.pools.guard import Guard

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's /proc")

GONE_SECONDS = 15
# Python's own tracker would remove the segment; in an engine that is killed whole it is killed, too.
SHARE = """
import time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
segment = SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
print(segment.name, flush=True)
time.sleep(600)
"""


def share(guard: Guard) -> tuple["subprocess.Popen[str]", Path]:
    """Start a marked process that maps a new segment of shared memory."""
    with guard.marked():
        process = subprocess.Popen([sys.executable, "-c", SHARE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path("/dev/shm") / process.stdout.readline().strip()


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + GONE_SECONDS
    while not what() and time.monotonic() < until:
        time.sleep(0.05)
    assert what()


def test_shared_memory_of_killed_processes_is_removed() -> None:
    guard = Guard()
    guard.start()
    process, segment = share(guard)
    assert segment.exists()
    guard.close()
    assert process.wait(GONE_SECONDS) < 0
    wait_for(lambda: not segment.exists())


def test_shared_memory_that_another_process_has_mapped_stays() -> None:
    guard = Guard()
    guard.start()
    process, segment = share(guard)
    ours = SharedMemory(segment.name)
    witness, other = share(guard)
    try:
        guard.close()
        assert process.wait(GONE_SECONDS) < 0
        assert witness.wait(GONE_SECONDS) < 0
        wait_for(lambda: not other.exists())
        time.sleep(0.5)  # Removed in one go, in any order.
        assert segment.exists()
    finally:
        ours.close()
        ours.unlink()
