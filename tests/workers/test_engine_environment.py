"""What a process is given before vllm is imported in it, and the canaries that a small model can hold."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Command, write_jsonl

from synthia_batch.core import vision
from synthia_batch.errors import UsageError
from synthia_batch.job.resolved import EngineSpec, LoraAdapter, ModelRef
from synthia_batch.job.sampling import Sampling
from synthia_batch.models.prompts.formats import ChatFormat
from synthia_batch.models.prompts.tokenizer import ByteTokenizer, Renderer
from synthia_batch.runner.directory.canary_record import make_canaries
from synthia_batch.workers.engine import Placement
from synthia_batch.workers.environment import preferred_environment, prepare_environment, required_environment
from synthia_batch.workers.vllm.arguments import engine_arguments
from synthia_batch.workers.vllm.settings import check_processes

SPEC = EngineSpec(
    kind="vllm",
    model=ModelRef(name="m", path=Path("/m"), repo_id=None, revision=None, trust_remote_code=False),
    device="cpu",
    dtype="auto",
    quantization=None,
    max_model_len=100,
    sampling=Sampling(),
    determinism="strict",
    tensor_parallel_size=1,
    pipeline_parallel_size=1,
    settings={},
)
ELSEWHERE = {"distributed_executor_backend": "mp"}
"""Has vLLM compute in a process of its own."""


def test_what_determinism_rests_on_wins_over_the_users_shell() -> None:
    code = (
        "from test_engine_environment import SPEC\n"
        "from synthia_batch.workers.environment import prepare_environment\n"
        "from synthia_batch.workers.engine import Placement\n"
        "prepare_environment(SPEC, Placement())\n"
        "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['VLLM_LOGGING_LEVEL'])"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "VLLM_LOGGING_LEVEL": "DEBUG"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "DEBUG"]


def test_adapters_on_cpus_stay_in_the_process_that_keeps_them_apart() -> None:
    adapter = LoraAdapter(name="a", path=Path("/a"), rank=8, digest="")
    fast = dataclasses.replace(SPEC, determinism="fast")
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in required_environment(fast)
    adapted = dataclasses.replace(fast, adapters=(adapter,))
    assert required_environment(adapted)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    with pytest.raises(UsageError, match="cannot keep LoRA adapters apart"):
        check_processes(dataclasses.replace(adapted, tensor_parallel_size=2))
    with pytest.raises(UsageError, match=r"engine\.distributed_executor_backend: .*keep LoRA adapters apart"):
        check_processes(dataclasses.replace(adapted, settings=ELSEWHERE))


def test_batch_invariance_is_asked_for_on_gpus_and_only_where_it_is_meant() -> None:
    on_gpu = dataclasses.replace(SPEC, device="cuda")
    assert required_environment(on_gpu) == {"VLLM_BATCH_INVARIANT": "1"}
    assert required_environment(dataclasses.replace(on_gpu, determinism="fast")) == {
        "VLLM_BATCH_INVARIANT": "0"
    }
    assert "VLLM_BATCH_INVARIANT" not in required_environment(SPEC)


def test_strict_determinism_keeps_a_cpu_engine_in_one_process_and_fast_leaves_it_to_the_user() -> None:
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    assert required_environment(SPEC)[name] == "0"
    fast = dataclasses.replace(SPEC, determinism="fast")
    assert name not in required_environment(fast)
    assert preferred_environment(fast)[name] == "0"
    assert name not in preferred_environment(dataclasses.replace(fast, device="cuda"))


def test_a_cpu_engine_of_several_processes_is_refused_in_strict_determinism() -> None:
    split = dataclasses.replace(SPEC, tensor_parallel_size=3)
    with pytest.raises(UsageError, match="--determinism fast"):
        check_processes(split)
    check_processes(SPEC)
    check_processes(dataclasses.replace(split, determinism="fast"))
    check_processes(dataclasses.replace(split, device="cuda"))
    elsewhere = dataclasses.replace(SPEC, settings=ELSEWHERE)
    with pytest.raises(UsageError, match=r"engine\.distributed_executor_backend: .*strictly deterministic"):
        check_processes(elsewhere)
    check_processes(dataclasses.replace(elsewhere, determinism="fast"))
    check_processes(dataclasses.replace(SPEC, settings={"distributed_executor_backend": "uni"}))


def test_only_an_engine_that_is_to_compile_may() -> None:
    name = "TORCHDYNAMO_DISABLE"
    fast = dataclasses.replace(SPEC, determinism="fast")
    assert preferred_environment(SPEC)[name] == preferred_environment(fast)[name] == "1"
    for eager in (False, None):
        compiling = dataclasses.replace(fast, settings={"enforce_eager": eager})
        assert name not in preferred_environment(compiling)
    assert name not in preferred_environment(dataclasses.replace(SPEC, device="cuda"))


def test_nothing_phones_home() -> None:
    off = preferred_environment(SPEC)
    assert (off["VLLM_NO_USAGE_STATS"], off["HF_HUB_DISABLE_TELEMETRY"], off["RAY_USAGE_STATS_ENABLED"]) == (
        "1",
        "1",
        "0",
    )


@pytest.mark.parametrize("max_model_len", [16, 64, 8192])
def test_canaries_fit_the_model_and_need_no_template(max_model_len: int) -> None:
    refuses_all = ChatFormat("{{ raise_exception('a system message is needed') }}", {})
    canaries = make_canaries(Renderer(refuses_all, ByteTokenizer()), max_model_len)
    asked = [*canaries.prompts, *canaries.fillers]
    assert len({request.ordinal for request in asked}) == len(asked)
    for request in asked:
        assert request.max_tokens is not None
        assert 0 < len(request.token_ids) <= max(1, max_model_len - request.max_tokens)
        assert request.ordinal < 0


def test_a_very_short_model_still_runs(synthia: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "q.jsonl", [{"prompt": "Hi"}])
    done = synthia(
        "run",
        source,
        "--engine",
        "scripted",
        "--pool",
        "local",
        "-s",
        "none",
        "--set",
        "model.max_model_len=30",
    )
    assert done.returncode == 0, done.stderr


def test_a_token_of_the_hub_is_no_argument_that_vllm_would_log() -> None:
    spec = dataclasses.replace(SPEC, settings={"hf_token": "hf_planted"})
    assert "hf_token" not in engine_arguments(spec, Placement())
    with pytest.MonkeyPatch.context() as patch:
        for name in required_environment(SPEC):
            patch.setenv(name, "")
        patch.setattr(os, "environ", dict(os.environ))
        prepare_environment(spec, Placement())
        assert os.environ["HF_TOKEN"] == "hf_planted"


@pytest.mark.parametrize(
    ("versions", "hidden"),
    [
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, ["torchvision"]),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu"}, []),
        ({"torch": "2.13.0", "torchvision": "0.28.0"}, []),
    ],
)
def test_a_torchvision_for_gpus_counts_as_missing_beside_a_torch_for_cpus(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], hidden: list[str]
) -> None:
    modules: dict[str, object] = {}
    monkeypatch.setattr(vision, "sys", SimpleNamespace(modules=modules))
    monkeypatch.setattr(vision.metadata, "version", lambda name: versions.get(name, "0.1+cpu"))
    vision.hide_other_builds()
    assert [name for name, module in modules.items() if module is None] == hidden
