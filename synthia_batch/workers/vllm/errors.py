"""Converts the errors of torch and vLLM to those of this package.

An engine core in a process of its own reports only that it failed ("Engine core initialization failed",
EngineDeadError): its reason is in the log that it shares with this process.
"""

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from vllm.v1.engine.exceptions import EngineDeadError

from synthia_batch.core.errors import EngineOutOfMemory, UsageError
from synthia_batch.workers.engine import describe_refusal
from synthia_batch.workers.process_log import ProcessLog
from synthia_batch.workers.vllm.compat import BESIDE_TORCH, advise_on_import, client_errors

_SHORTAGE = re.compile(
    r"OutOfMemoryError|CUDA out of memory|Free memory on device|No available memory for the cache blocks"
    r"|cudaErrorMemoryAllocation|NCCL.*out of memory"
)
"""Messages of torch, CUDA, NCCL and vLLM (v1/worker/utils.py, v1/core/kv_cache_utils.py) about too little
memory on a GPU. Those of vLLM are ValueErrors, which have no type of their own."""
_SETTING = re.compile(r"(?:\bValueError|\bValidationError): (?P<message>.*(?:\n.*){0,2})")
"""The last line of the traceback of an invalid setting; Pydantic's messages have two more."""
_NOT_IMPORTED = "failed to be inspected"
"""vLLM imports a model's code in a process of its own, and says this of any error (models/registry.py)."""
_OF_PACKED_WEIGHTS = "cpu_gemm_wna16"
_MORE_THAN_ANY_MACHINE_HAS = 2**62


@contextmanager
def memory_errors() -> Iterator[None]:
    """Convert the out-of-memory errors of torch and Python to EngineOutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise EngineOutOfMemory(f"{type(exc).__name__}: {exc}") from exc
    except RuntimeError as exc:
        if not is_cpu_shortage(exc):
            raise
        raise EngineOutOfMemory(str(exc)) from exc


@contextmanager
def setting_errors() -> Iterator[None]:
    """Convert vLLM's errors about invalid arguments to UsageError: loading again would not help."""
    refusals: tuple[type[Exception], ...] = (TypeError, *client_errors())
    try:
        yield
    except refusals as exc:
        if is_gpu_shortage(str(exc)):
            raise EngineOutOfMemory(str(exc)) from exc
        if _NOT_IMPORTED in str(exc) and (broken := find_broken_import()) is not None:
            raise UsageError(
                f"vLLM cannot import the model's code: {broken}; {advise_on_import(broken)}"
            ) from exc
        raise UsageError(_explain_setting(describe_refusal(exc))) from exc


@contextmanager
def core_errors(log: ProcessLog, *, is_loading: bool) -> Iterator[None]:
    """Convert the errors of an engine core in other processes according to what these have printed to `log`.

    Errors whose cause is not found there remain unchanged.

    Raises:
        EngineOutOfMemory: It ran out of memory.
        UsageError: While loading, it rejected a setting.
    """
    try:
        yield
    except (RuntimeError, EngineDeadError) as exc:
        error = explain_core(log.read(), is_loading=is_loading)
        if error is None:
            raise
        raise error from exc


def explain_core(printed: str, *, is_loading: bool) -> EngineOutOfMemory | UsageError | None:
    """Return the error behind what a failed engine core has `printed`, None if it is of another kind."""
    if found := _SHORTAGE.search(printed):
        line = printed[printed.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
        return EngineOutOfMemory(line.strip())
    *_, last = [None, *_SETTING.finditer(printed)]
    if last is None or not is_loading:
        return None
    return UsageError(_explain_setting(last["message"].strip()))


def find_broken_import() -> str | None:
    """Return the error of a package beside torch that is there and cannot be imported, None if all can.

    It is looked for and imported in a new process: in this one that may have been tried.
    """
    for name in BESIDE_TORCH:
        program = f"import importlib.util\nif importlib.util.find_spec({name!r}): import {name}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{name}: {done.stderr.strip().splitlines()[-1]}"
    return None


def check_kernels(device: str, quantization: str | None) -> None:
    """Check that a loaded engine has the kernel of its weights, without which it dies of every prompt.

    vLLM's CPU build has the one for 4-bit weights (kernels/linear/mixed_precision/cpu.py) only for AVX512.

    Raises:
        UsageError: It does not.
    """
    is_packed = device == "cpu" and any(method in (quantization or "") for method in ("awq", "gptq"))
    if is_packed and not hasattr(torch.ops._C, _OF_PACKED_WEIGHTS):
        raise UsageError(
            f"the model is quantized with {quantization}; vLLM's build for this CPU has no kernel for it "
            f"({_OF_PACKED_WEIGHTS} needs AVX512): use another machine, or a model that is not quantized"
        )


def is_gpu_shortage(message: str) -> bool:
    """Whether `message` reports that a GPU has too little memory."""
    return _SHORTAGE.search(message) is not None


def _explain_setting(message: str) -> str:
    return (
        f"vLLM cannot start with these settings: {message}\n"
        "change the setting named above, with --set engine.KEY=VALUE or the flags of model and sampling"
    )


def is_cpu_shortage(error: RuntimeError) -> bool:
    """Whether `error` is torch's out-of-memory error of the CPU allocator.

    Unlike a GPU's, it has no type or code, only a text. The expected text is taken from the installed torch,
    with an allocation that must fail, and its whole first line is compared, apart from numbers.
    """
    return type(error) is RuntimeError and _describe(error) == _describe_shortage()


@functools.cache
def _describe_shortage() -> str | None:
    try:
        torch.empty(_MORE_THAN_ANY_MACHINE_HAS, dtype=torch.uint8)
    except RuntimeError as exc:
        return _describe(exc)
    return None


def _describe(error: RuntimeError) -> str:
    return re.sub(r"\d+", "#", str(error).partition("\n")[0])
