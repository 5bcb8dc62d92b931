"""What a job's processes shared in memory goes with them, also where all of them are killed at once."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
from test_engine_environment import SPEC

from synthia_batch.workers.environment import starts_processes
from synthia_batch.workers.pools.guard import Guard
from synthia_batch.workers.pools.process_tree import kill_descendants, list_descendants

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


WORKER = """
import subprocess, sys, time
from synthia_batch.workers.pools.guard import ENGINE_MARK, Guard
guard = Guard(ENGINE_MARK)
guard.start()
with guard.marked():
    core = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(core.pid, flush=True)
time.sleep(600)
"""
CORE = """
import subprocess, sys, time
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
apart = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(inner.pid, apart.pid, flush=True)
inner.wait()
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    """Whether `pid` runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_engines_core_ends_with_its_worker_whoever_started_the_worker() -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    core = int(worker.stdout.readline())
    assert is_running(core)
    worker.kill()
    worker.wait()
    wait_for(lambda: not is_running(core))


def test_descendants_are_ended_alone_and_a_guard_is_spared() -> None:
    core = subprocess.Popen([sys.executable, "-c", CORE], stdout=subprocess.PIPE, text=True)
    assert core.stdout is not None
    inner, apart = map(int, core.stdout.readline().split())
    try:
        assert set(list_descendants(core.pid)) == {inner, apart}
        assert core.pid in list_descendants(os.getpid())
        kill_descendants(core.pid)
        wait_for(lambda: not is_running(inner))
        assert is_running(apart)
        assert is_running(core.pid)
    finally:
        os.kill(apart, signal.SIGKILL)
        core.kill()
        core.wait()


def test_only_engines_that_may_start_processes_have_a_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = dataclasses.replace(SPEC, determinism="fast")
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    assert not starts_processes(SPEC)
    assert not starts_processes(fast)
    assert not starts_processes(dataclasses.replace(fast, kind="scripted"))
    assert starts_processes(dataclasses.replace(fast, tensor_parallel_size=2))
    assert starts_processes(dataclasses.replace(SPEC, device="cuda"))
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    assert starts_processes(fast)
    assert not starts_processes(SPEC), "in strict the patches keep it in one process"
