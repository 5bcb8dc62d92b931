"""A cluster of several raylets on this machine: nodes that go and come, and a Ray that is left as it was."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command, read_bytes_of_data, read_call_log
from test_ray_faults import (
    finish,
    list_descendants,
    list_engines,
    list_processes,
    make_undisturbed,
    read_events,
    start_run,
    wait_until,
    write_questions,
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads Linux's /proc"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head without CPUs and one node with one, started before any job."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def list_all_engines() -> list[int]:
    return list_engines(list_descendants(os.getpid()))


def list_raylets() -> set[int]:
    processes = list_processes()
    return {pid for pid in list_descendants(os.getpid()) if processes[pid][1] == "raylet"}


def test_a_node_that_joins_is_used_and_one_that_is_lost_costs_what_was_in_flight(
    tmp_path: Path, cluster
) -> None:  # type: ignore[no-untyped-def]
    source = write_questions(tmp_path / "q.jsonl", 600)
    log = tmp_path / "calls"
    with start_run(
        tmp_path, source, "--ray-address", cluster.address, "--set", "engine.max_num_seqs=4", "--set",
        "engine.latency_ms=200", "--set", f"engine.call_log={log}",
    ) as child:  # fmt: skip
        wait_until(lambda: len(read_events(tmp_path, "worker_ready")) == 1, child, "the first worker")
        node = cluster.add_node(num_cpus=1)
        wait_until(lambda: len(read_events(tmp_path, "worker_ready")) == 2, child, "a worker on the new node")
        made = len(read_call_log(log))
        wait_until(lambda: len(read_call_log(log)) > made + 30, child, "samples of both")
        cluster.remove_node(node, allow_graceful=False)
        finish(child, tmp_path)
    assert not list_all_engines(), "a job that has ended leaves no engine in a Ray that stays"
    assert len(read_events(tmp_path, "worker_added")) == 1
    assert len(read_events(tmp_path, "worker_lost")) == 1
    calls = read_call_log(log)
    assert set(calls) == set(range(600))
    assert len(calls) - 600 <= 8
    assert read_bytes_of_data(tmp_path / "out") == make_undisturbed(tmp_path, source)


def test_the_address_that_ray_job_submit_gives_is_honoured(synthia: Command, tmp_path: Path, cluster) -> None:  # type: ignore[no-untyped-def]
    source = write_questions(tmp_path / "q.jsonl", 20)
    done = synthia("run", source, "--engine", "scripted", "-o", "out", "-v", RAY_ADDRESS=cluster.address)
    assert done.returncode == 0, done.stderr
    # A Ray of the job's own would have started an engine for each core.
    ready = [event["worker"] for event in read_events(tmp_path, "worker_ready")]
    assert ready == [0], "the cluster has one CPU"


def test_a_killed_driver_leaves_nothing_in_a_ray_that_was_there_before(tmp_path: Path, cluster) -> None:  # type: ignore[no-untyped-def]
    source = write_questions(tmp_path / "q.jsonl", 2000)
    raylets = list_raylets()
    assert len(raylets) >= 2
    arguments = (source, "--ray-address", cluster.address, "--set", "engine.latency_ms=200")
    with start_run(tmp_path, *arguments) as child:
        wait_until(lambda: read_events(tmp_path, "worker_ready"), child, "a worker")
        assert list_all_engines()
        child.send_signal(signal.SIGKILL)
        child.wait()
    with start_run(tmp_path, *arguments) as child:
        # There is one CPU: the second job starts on it only if Ray took it back from the first.
        wait_until(lambda: len(read_events(tmp_path, "worker_ready")) == 2, child, "a worker", seconds=40)
        assert len(list_all_engines()) == 1
    assert list_raylets() >= raylets
