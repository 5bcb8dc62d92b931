"""What an engine core in its own process died of, found in the log that it shares with its worker."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import NEEDS_VLLM

from synthia_batch.errors import EngineOutOfMemory, UsageError

PREFIX = "(EngineCore pid=7) ERROR 11-30 13:00:00 [core.py:1100] "
FREE = (
    "ValueError: Free memory on device cuda:0 (20.1/79.2 GiB) on startup is less than desired GPU memory "
    "utilization (0.92, 72.8 GiB)."
)
CONTEXT = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (64.0 GiB KV cache is "
    "needed, which is larger than the available KV cache memory (12.0 GiB)."
)
PYDANTIC = (
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig\n"
    "max_num_seqs\n  Input should be greater than or equal to 1\n    For further information visit\n"
)
ROOT = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"


@NEEDS_VLLM
@pytest.mark.parametrize("is_loading", [True, False])
@pytest.mark.parametrize(
    "line",
    [
        FREE,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "RuntimeError: CUDA error: cudaErrorMemoryAllocation",
        "NCCL WARN Cuda failure 'out of memory'",
    ],
)
def test_a_core_short_of_memory_is_recognized_by_its_log(line: str, is_loading: bool) -> None:
    from synthia_batch.workers.vllm.errors import explain_core

    found = explain_core(f"INFO loading\n{PREFIX}{line}\n{ROOT}", is_loading=is_loading)
    assert isinstance(found, EngineOutOfMemory)
    assert line in str(found)


@NEEDS_VLLM
@pytest.mark.parametrize(
    ("printed", "named"),
    [
        (f"{PREFIX}{CONTEXT}\n{ROOT}", "max seq len (131072)"),
        (f"{PREFIX}ValueError: a first one\n{PREFIX}ValueError: the last one\n{ROOT}", "the last one"),
        (f"{PYDANTIC}{ROOT}", "Input should be greater than or equal to 1"),
    ],
)
def test_a_setting_that_a_core_rejects_is_the_users_and_only_while_loading(printed: str, named: str) -> None:
    from synthia_batch.workers.vllm.errors import explain_core

    found = explain_core(printed, is_loading=True)
    assert isinstance(found, UsageError)
    assert named in str(found)
    assert explain_core(printed, is_loading=False) is None


@NEEDS_VLLM
def test_other_deaths_of_a_core_keep_their_error() -> None:
    from synthia_batch.workers.process_log import ProcessLog
    from synthia_batch.workers.vllm.errors import core_errors, explain_core

    assert (
        explain_core(f"{PREFIX}RuntimeError: CUDA error: an illegal memory access\n", is_loading=True) is None
    )
    error = RuntimeError("Engine core initialization failed.")
    with pytest.raises(RuntimeError) as caught, core_errors(ProcessLog(), is_loading=True):
        raise error
    assert caught.value is error


@NEEDS_VLLM
@pytest.mark.parametrize("is_loading", [True, False])
def test_a_core_that_dies_of_memory_is_no_samples_fault(
    is_loading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    from synthia_batch.workers.process_log import ProcessLog
    from synthia_batch.workers.vllm.errors import core_errors

    printed = f"{PREFIX}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    monkeypatch.setattr(ProcessLog, "read", lambda log: printed)
    error = RuntimeError("Engine core initialization failed.") if is_loading else EngineDeadError()
    with pytest.raises(EngineOutOfMemory, match="Tried to allocate"):  # noqa: SIM117
        with core_errors(ProcessLog(), is_loading=is_loading):
            raise error


@NEEDS_VLLM
def test_a_shortage_that_vllm_reports_as_a_value_is_memory_and_no_setting() -> None:
    from synthia_batch.workers.vllm.errors import setting_errors

    with pytest.raises(EngineOutOfMemory, match="Free memory on device"), setting_errors():
        raise ValueError(FREE)
    with pytest.raises(UsageError, match="max seq len"), setting_errors():
        raise ValueError(CONTEXT)


@NEEDS_VLLM
def test_code_of_a_model_that_cannot_be_imported_is_no_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthia_batch.workers.vllm import errors

    unread = ValueError("Value error, Model architectures ['LlamaForCausalLM'] failed to be inspected.")
    with pytest.raises(UsageError, match="cannot start with these settings"), errors.setting_errors():
        raise unread
    name = "torchvision_of_this_test"
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(errors, "BESIDE_TORCH", ("no_such_module", name))
    with pytest.raises(UsageError, match="cannot import the model's code") as found, errors.setting_errors():
        raise unread
    assert "operator torchvision::nms does not exist; generating text needs none of" in str(found.value)


PROGRAM = """
import subprocess, sys
from synthia_batch.workers.process_log import ProcessLog
log = ProcessLog()
subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
print("of this process", file=sys.stderr, flush=True)
read = log.read()
open(sys.argv[1], "w").write(read)
"""


def run_with_output_to(tmp_path: Path, out: Path, err: Path) -> str:
    answer = tmp_path / "answer"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with out.open("ab") as stdout, err.open("ab") as stderr:
        command = [sys.executable, "-c", PROGRAM, str(answer)]
        subprocess.run(command, stdout=stdout, stderr=stderr, env=environment, check=True)
    return answer.read_text()


def test_a_process_reads_what_it_and_its_children_printed_since_the_start(tmp_path: Path) -> None:
    log = tmp_path / "worker-0.log"
    log.write_text("CUDA out of memory, in the engine before\n")
    assert run_with_output_to(tmp_path, log, log) == "of a child\nof this process\n"


def test_output_to_two_files_is_read_from_both(tmp_path: Path) -> None:
    read = run_with_output_to(tmp_path, tmp_path / "w.out", tmp_path / "w.err")
    assert read == "of a child\nof this process\n"


@NEEDS_VLLM
def test_a_cpu_without_the_kernel_of_packed_weights_is_refused_once_the_engine_is_loaded() -> None:
    import torch

    from synthia_batch.workers.vllm.errors import check_kernels

    has_kernel = hasattr(torch.ops._C, "cpu_gemm_wna16")
    for device, quantization in (("cpu", None), ("cpu", "fp8"), ("cuda", "awq")):
        check_kernels(device, quantization)
    for quantization in ("awq", "cpu_awq", "gptq"):
        with (
            nullcontext() if has_kernel else pytest.raises(UsageError, match=f"{quantization}.* needs AVX512")
        ):
            check_kernels("cpu", quantization)
