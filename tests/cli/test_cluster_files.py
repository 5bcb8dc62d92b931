"""The files of jobs/cluster/: read as what they are, and the batch script run with Slurm's commands acted."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, make_environment, write_jsonl
from ruamel.yaml import YAML
from test_ray_faults import wait_until_gone

from synthia_batch.job.loading.merge import Layer, merge_layers, parse_assignment

CLUSTER = ROOT / "jobs" / "cluster"
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then hostname; else echo "$@" >>"$SCONTROL_LOG"; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a Slurm job of one node, with commands that act as Slurm's do."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    # As in an environment that has the package installed: this one's sources are to be run.
    (commands / "synthia-batch").write_text(f'#!/bin/sh\nexec {sys.executable} -m synthia_batch "$@"\n')
    (commands / "synthia-batch").chmod(0o755)
    for name in ("ray", "python"):
        (commands / name).symlink_to(Path(sys.executable).parent / name)
    ray_files = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Sockets below it: the path must be short.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield make_environment(
        PATH=f"{commands}:{os.environ['PATH']}", VENV=str(tmp_path / "none"), RAY_PORT=str(port),
        RAY_TMPDIR=ray_files, RAY_SETTLE_SECONDS="0", SLURM_JOB_ID="7", SLURM_JOB_NODELIST="here",
        SLURM_JOB_NUM_NODES="1", SLURM_CPUS_PER_TASK="1", SLURM_GPUS_ON_NODE="0",
        SLURM_SUBMIT_DIR=str(tmp_path), SCONTROL_LOG=str(tmp_path / "scontrol"),
    )  # fmt: skip
    shutil.rmtree(ray_files, ignore_errors=True)


def list_users_of(directory: str) -> set[int]:
    """Return the processes that were started with `directory` in their command line, as Ray's own are."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if directory.encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found


def test_the_rayjob_asks_for_a_run_that_this_version_understands() -> None:
    spec = YAML(typ="safe").load(CLUSTER / "rayjob.yaml")
    assert (spec["apiVersion"], spec["kind"]) == ("ray.io/v1", "RayJob")
    words = spec["spec"]["entrypoint"].split()
    assert words[:2] == ["synthia-batch", "run"]
    settings = [parse_assignment("pool.tensor_parallel_size=8"), {"input": {"path": words[2]}}]
    job = merge_layers([Layer(origin="file", values=values) for values in settings]).job
    group = spec["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) % job.pool.tensor_parallel_size == 0
    assert int(limits["cpu"]) >= int(limits["nvidia.com/gpu"]), "each engine takes a CPU as well"


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", CLUSTER / "slurm.sh"], check=True)


@pytest.mark.long
@pytest.mark.machine
def test_the_slurm_script_runs_a_job_on_a_ray_of_its_own_and_leaves_none(
    tmp_path: Path, slurm: dict[str, str]
) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"question": f"What is {n}?"} for n in range(10)])
    script = subprocess.Popen(
        ["bash", CLUSTER / "slurm.sh", source, "--engine", "scripted", "-o", tmp_path / "out"],
        cwd=tmp_path, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = script.communicate(timeout=150)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert script.returncode == 0, said
    wait_until_gone(list_users_of(slurm["RAY_TMPDIR"]))
    assert (tmp_path / "out" / "manifest.json").exists()
    assert not (tmp_path / "scontrol").exists(), "a job that is done is not queued again"
