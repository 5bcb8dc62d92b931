"""Check whether a job's engines fit in memory. Pure functions of sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

from synthia_batch.job.resolved import Device
from synthia_batch.workers.vllm.arguments import CPU_KV_CACHE_BYTES, GPU_MEMORY_SHARE, GPU_OVERHEAD_BYTES

PROCESS_BYTES = 10**9
"""Rough size of a CPU engine besides weights and KV cache: Python, torch, vLLM and its activations."""
_OF_MEMORY_FOR_CACHES = 4
"""A CPU engine's cache takes at most a quarter of its share of memory; see workers/vllm/arguments.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineNeed:
    """One engine's weights and the KV cache of one sample of maximum length, in bytes; None if unknown.

    `parts` is the number of processes that it is split into.
    """

    weights_bytes: int | None
    sample_bytes: int | None
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineMemory:
    """A machine's memory in bytes, shared by `engines`; None: one engine per group of GPUs."""

    device: Device
    memory_bytes: int
    gpu_bytes: Sequence[int]
    engines: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """Whether the engines fit, None if unknown, and the reason."""

    fits: bool | None
    reason: str


def check_memory(need: EngineNeed, memory: MachineMemory) -> MemoryFit:
    """Return whether engines with this `need` fit in `memory`."""
    if need.weights_bytes is None:
        return MemoryFit(fits=None, reason="the size of the weights is unknown")
    return _check_cpu(need, memory) if memory.device == "cpu" else _check_gpu(need, memory)


def _check_cpu(need: EngineNeed, memory: MachineMemory) -> MemoryFit:
    engines = memory.engines or 1
    weights, sample = need.weights_bytes or 0, need.sample_bytes or 0
    each = weights + sample + PROCESS_BYTES
    sizes = (
        f"{engines} x ({_gb(weights)} weights + {_describe_cache(need)} + "
        f"{_gb(PROCESS_BYTES)} process) = {_gb(engines * each)} of {_gb(memory.memory_bytes)} RAM"
    )
    if engines * each > memory.memory_bytes:
        most = int(memory.memory_bytes // each)
        hint = f"use --workers {most}" if most else "use a smaller or quantized model, or GPUs"
        return MemoryFit(fits=False, reason=f"{sizes}: does not fit; {hint}")
    cache = min(CPU_KV_CACHE_BYTES, memory.memory_bytes // (_OF_MEMORY_FOR_CACHES * engines))
    if sample > cache:
        return MemoryFit(
            fits=False,
            reason=f"{sizes}; but an engine's KV cache has {_gb(cache)}: raise it with --set "
            f"engine.kv_cache_memory_bytes={sample}, or lower the need with --set model.max_model_len=N",
        )
    return MemoryFit(fits=True, reason=sizes)


def _check_gpu(need: EngineNeed, memory: MachineMemory) -> MemoryFit:
    if not memory.gpu_bytes:
        return MemoryFit(fits=None, reason="no GPU found here, so GPU memory cannot be checked")
    if len(memory.gpu_bytes) < need.parts:
        reason = f"an engine needs {need.parts} GPUs, but this machine has {len(memory.gpu_bytes)}"
        return MemoryFit(fits=False, reason=f"{reason}; use fewer, or a cluster with --ray-address")
    weights, sample = need.weights_bytes or 0, need.sample_bytes or 0
    share = (weights + sample) / need.parts + GPU_OVERHEAD_BYTES
    usable = min(memory.gpu_bytes) * GPU_MEMORY_SHARE
    sizes = (
        f"({_gb(weights)} weights + {_describe_cache(need)}) / {need.parts} + "
        f"{_gb(GPU_OVERHEAD_BYTES)} context, graphs and activations = "
        f"{_gb(share)} of {_gb(usable)} available to an engine on each GPU"
    )
    if share <= usable:
        return MemoryFit(fits=True, reason=sizes)
    room = usable - GPU_OVERHEAD_BYTES
    enough = next((parts for parts in (2, 4, 8, 16) if (weights + sample) / parts <= room), None)
    hint = f"use --tensor-parallel-size {enough}" if enough else "use a quantized or smaller model"
    return MemoryFit(fits=False, reason=f"{sizes}: does not fit; {hint}")


def _describe_cache(need: EngineNeed) -> str:
    if need.sample_bytes is None:
        return "a KV cache of unknown size"
    return f"{_gb(need.sample_bytes)} KV cache for a sample of maximum length"


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
