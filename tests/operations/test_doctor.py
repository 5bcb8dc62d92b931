"""`doctor`, and the arithmetic of what fits where."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, write_jsonl
from test_models import EMPTY_WEIGHTS, make_model

from synthia_batch.job.loading.merge import Layer
from synthia_batch.models.weights import count_kv_values, weigh_model
from synthia_batch.operations import doctor as examining
from synthia_batch.operations.doctor import Diagnosis, examine_job
from synthia_batch.runner import memory_fit
from synthia_batch.runner.memory_fit import PROCESS_BYTES, EngineNeed, MachineMemory, check_memory

GB = 10**9
LLAMA_70B = {
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192,
}  # fmt: skip
SAMPLE_70B = 2 * 80 * 8 * 128 * 2 * 4096
"""Bytes of keys and values of 4,096 tokens, 2 bytes each."""


def on_gpus(*sizes_gb: int) -> MachineMemory:
    return MachineMemory(
        device="cuda", memory_bytes=64 * GB, gpu_bytes=[size * GB for size in sizes_gb], engines=None
    )


def on_cpu(memory_gb: int, engines: int) -> MachineMemory:
    return MachineMemory(device="cpu", memory_bytes=memory_gb * GB, gpu_bytes=(), engines=engines)


def need(weights_gb: float, parts: int = 1, sample_bytes: int | None = SAMPLE_70B) -> EngineNeed:
    return EngineNeed(weights_bytes=int(weights_gb * GB), sample_bytes=sample_bytes, parts=parts)


def test_the_cards_placements_fit_and_smaller_ones_do_not() -> None:
    assert count_kv_values(LLAMA_70B) == 2 * 80 * 8 * 128
    assert check_memory(need(138, parts=2), on_gpus(80, 80)).fits
    alone = check_memory(need(138), on_gpus(80, 80))
    assert alone.fits is False
    assert "--tensor-parallel-size 2" in alone.reason
    assert check_memory(need(36.61), on_gpus(48)).fits
    assert check_memory(need(36.61), on_gpus(24)).fits is False
    # What the engine needs besides weights and cache counts, too: 3 GB of context, graphs and activations.
    assert check_memory(need(70, sample_bytes=0), on_gpus(80)).fits
    full = check_memory(need(72, sample_bytes=0), on_gpus(80))
    assert (full.fits, "3.00 GB context, graphs and activations" in full.reason) == (False, True)
    missing = check_memory(need(138, parts=2), on_gpus(80))
    assert (missing.fits, "needs 2 GPUs, but this machine has 1" in missing.reason) == (False, True)


def test_cpu_engines_share_the_memory() -> None:
    two = check_memory(need(14, sample_bytes=0), on_cpu(24, 2))
    assert (two.fits, "--workers 1" in two.reason) == (False, True)
    assert check_memory(need(14, sample_bytes=0), on_cpu(24, 1)).fits
    assert "quantized model, or GPUs" in check_memory(need(138), on_cpu(24, 1)).reason
    # 5 GB fit the machine, and not the quarter of it that a cache takes by itself.
    cache = check_memory(need(1, sample_bytes=5 * GB), on_cpu(16, 1))
    assert (cache.fits, "engine.kv_cache_memory_bytes=5000000000" in cache.reason) == (False, True)
    assert PROCESS_BYTES > 0


def test_what_is_not_known_is_not_judged() -> None:
    assert check_memory(EngineNeed(weights_bytes=None, sample_bytes=None, parts=1), on_cpu(1, 1)).fits is None
    assert check_memory(need(1), on_gpus()).fits is None


def examine(**values: Any) -> Diagnosis:
    return examine_job([Layer(origin="flag", values=values)])


def find(diagnosis: Diagnosis, name: str) -> tuple[str, str]:
    (check,) = [check for check in diagnosis.checks if check.name == name]
    return check.state, check.text


def test_a_job_is_examined_by_its_files_and_its_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(examining, "total_memory_bytes", lambda: 24 * GB)
    model = make_model(tmp_path / "m", **{"config.json": {**LLAMA_70B, "max_position_embeddings": 4096}})
    assert weigh_model(str(model), None, "cpu").weights_bytes == len(EMPTY_WEIGHTS)
    small = examine(model={"name": str(model)}, pool={"workers": 1}, engine={"device": "cpu"})
    assert find(small, "fit")[0] == "ok"
    # Out of the Hub's reach, a preset says how large its model is: 138 GB are not for 24.
    large = examine(preset="synthia-70b", engine={"device": "cpu"})
    said = "migtissera/Synthia-70B, preset synthia-70b, 138.00 GB according to its preset"
    assert find(large, "model")[1] == said
    assert find(large, "fit")[0] == "bad"
    assert not large.is_healthy
    gguf = examine(model={"name": "TheBloke/Synthia-70B-GGUF:Q4_K_M"}, engine={"device": "cpu"})
    assert "110.35 GB according to its preset" in find(gguf, "model")[1]
    monkeypatch.setattr(memory_fit, "list_gpu_memory", lambda: (80 * GB, 80 * GB))
    split = examine(preset="synthia-70b", engine={"device": "cuda"})
    assert find(split, "fit")[0] == "ok"
    assert "/ 2 + " in find(split, "fit")[1]
    nowhere = examine(model={"name": str(tmp_path / "nowhere")})
    assert find(nowhere, "model")[0] == "bad"


def test_doctor_says_what_there_is_and_exits_with_2_where_a_job_cannot_be(
    synthia: Command, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "q.jsonl", [{"question": "Why?"}])
    healthy = synthia("doctor", "q.jsonl", "--engine", "scripted", "--json")
    assert healthy.returncode == 0, healthy.stdout
    found = json.loads(healthy.stdout)
    assert found["healthy"]
    names = {check["name"] for check in found["checks"]}
    assert names >= {"engine", "gpus", "memory", "ray", "cache", "output", "input"}
    assert "ok  memory" in synthia("doctor").stdout
    missing = synthia("doctor", "nowhere.jsonl", "--engine", "scripted")
    assert missing.returncode == 2
    assert "BAD input: " in missing.stdout
    unreachable = synthia("doctor", "q.jsonl", "--engine", "scripted", "--ray-address", "127.0.0.1:9")
    assert unreachable.returncode == 2
    assert "BAD ray: no Ray cluster at 127.0.0.1:9" in unreachable.stdout
    assert synthia("doctor", "--set", "sampling.temprature=1").returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.jsonl"]
