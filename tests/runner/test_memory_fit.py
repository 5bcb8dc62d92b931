"""More engines than a machine can run are refused before anything starts, with the number that fits."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import Command, write_jsonl
from test_engine_environment import SPEC

from synthia_batch.core.console import Display
from synthia_batch.errors import UsageError
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.resolved import Device, PoolSpec, ResolvedJob
from synthia_batch.runner import memory_fit
from synthia_batch.runner.memory_fit import refuse_without_room
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.runner.run import run_resolved_job
from synthia_batch.workers.pools.local import LocalPool

GB = 10**9


@pytest.fixture
def rehearsal(tmp_path: Path) -> ResolvedJob:
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    values = {"input": {"path": str(questions)}, "engine": {"kind": "scripted"}}
    return resolve_job([Layer(origin="flag", values=values)])


def on_machine(monkeypatch: pytest.MonkeyPatch, *, cores: int, memory_gb: int, gpus: int = 0) -> None:
    monkeypatch.setattr(memory_fit, "list_cores", lambda: tuple(range(cores)))
    monkeypatch.setattr(memory_fit, "total_memory_bytes", lambda: memory_gb * GB)
    monkeypatch.setattr(memory_fit, "list_gpu_memory", lambda: (80 * GB,) * gpus)


def make_job(
    job: ResolvedJob, model: Path, *, workers: int | None, device: Device, parts: int = 1
) -> ResolvedJob:
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    with (model / "pytorch_model.bin").open("wb") as file:
        file.truncate(2 * GB)  # takes no room on the disk
    of_model = dataclasses.replace(SPEC.model, path=model)
    engine = dataclasses.replace(SPEC, model=of_model, device=device, tensor_parallel_size=parts)
    return dataclasses.replace(job, engine=engine, pool=dataclasses.replace(job.pool, workers=workers))


def find_refusal(job: ResolvedJob) -> str:
    with pytest.raises(UsageError) as refused:
        refuse_without_room(job)
    return str(refused.value)


def test_cpu_engines_share_memory_and_cores(
    rehearsal: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, cores=8, memory_gb=16)  # 3 GB each: five engines
    assert "use --workers 5; nothing was started" in find_refusal(
        make_job(rehearsal, tmp_path / "m", workers=99, device="cpu")
    )
    assert "use --workers 5" in find_refusal(make_job(rehearsal, tmp_path / "m", workers=None, device="cpu"))
    refuse_without_room(make_job(rehearsal, tmp_path / "m", workers=5, device="cpu"))
    on_machine(monkeypatch, cores=2, memory_gb=16)
    too_many = find_refusal(make_job(rehearsal, tmp_path / "m", workers=3, device="cpu"))
    assert "3 engines on 2 cores, one each; use --workers 2" in too_many
    on_machine(monkeypatch, cores=2, memory_gb=2)
    assert "smaller or quantized model" in find_refusal(
        make_job(rehearsal, tmp_path / "m", workers=1, device="cpu")
    )


def test_more_engines_than_gpus_would_wait_for_ever(
    rehearsal: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, cores=8, memory_gb=64, gpus=4)
    refused = find_refusal(make_job(rehearsal, tmp_path / "m", workers=3, device="cuda", parts=2))
    assert "3 engines take 6 GPUs, and this machine has 4; use --workers 2" in refused
    refuse_without_room(make_job(rehearsal, tmp_path / "m", workers=2, device="cuda", parts=2))
    refuse_without_room(make_job(rehearsal, tmp_path / "m", workers=None, device="cuda", parts=2))


def test_a_cluster_has_machines_of_its_own(
    rehearsal: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machine(monkeypatch, cores=1, memory_gb=1)
    job = make_job(rehearsal, tmp_path / "m", workers=99, device="cpu")
    pool: PoolSpec = dataclasses.replace(job.pool, ray_address="10.0.0.1:6379")
    refuse_without_room(dataclasses.replace(job, pool=pool))


def test_run_refuses_what_doctor_calls_bad_and_touches_nothing(synthia: Command, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    job = ("q.jsonl", "--engine", "scripted", "--workers", "9999")
    examined = synthia("doctor", *job, "--json")
    (fit,) = [check for check in json.loads(examined.stdout)["checks"] if check["name"] == "fit"]
    refused = synthia("run", *job)
    assert (examined.returncode, refused.returncode) == (2, 2)
    assert fit["text"] in refused.stderr
    assert "`--force` of run and retry starts them all the same" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_force_starts_them_all_the_same(
    rehearsal: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_fit, "LIGHT_PER_CORE", 0)
    monkeypatch.setattr("synthia_batch.runner.engines.open_pool", LocalPool)
    pool = dataclasses.replace(rehearsal.pool, workers=1)
    job = dataclasses.replace(rehearsal, pool=pool, output=tmp_path / "out")
    with pytest.raises(UsageError, match="1 processes on"):
        run_resolved_job(job, Display(quiet=True))
    assert not (tmp_path / "out").exists()
    assert run_resolved_job(job, Display(quiet=True), force=True).finished == 1
