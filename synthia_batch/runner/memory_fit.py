"""Check whether a job's engines fit on a machine: its memory, cores and GPUs."""

from collections.abc import Sequence
from dataclasses import dataclass

from synthia_batch.core.errors import UsageError
from synthia_batch.core.hardware import list_cores, list_gpu_memory, total_memory_bytes
from synthia_batch.job.resolved import Device, ResolvedJob
from synthia_batch.models.weights import weigh_model
from synthia_batch.workers.vllm.arguments import CPU_KV_CACHE_BYTES, GPU_MEMORY_SHARE, GPU_OVERHEAD_BYTES

PROCESS_BYTES = 10**9
"""Rough size of a CPU engine besides weights and KV cache: Python, torch, vLLM and its activations."""
LIGHT_PER_CORE = 8
"""Most processes of engines without weights on a core: starting one takes a second or two of it."""
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
    """A machine's memory in bytes, shared by `engines`; None: one engine per group of GPUs.

    `cores` is the number of its CPU cores, of which each CPU engine takes one, None if that is not to be
    checked. `cache_bytes` is the size of an engine's KV cache on CPUs, None for the default.
    """

    device: Device
    memory_bytes: int
    gpu_bytes: Sequence[int]
    engines: int | None
    cores: int | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """Whether the engines fit, None if unknown, and the reason."""

    fits: bool | None
    reason: str


def check_memory(need: EngineNeed, memory: MachineMemory) -> MemoryFit:
    too_many = _check_count(need, memory)
    if need.weights_bytes is None or (too_many is not None and memory.device == "cuda"):
        return too_many or MemoryFit(fits=None, reason="the size of the weights is unknown")
    return _check_cpu(need, memory) if memory.device == "cpu" else _check_gpu(need, memory)


def refuse_without_room(job: ResolvedJob) -> None:
    """Return unless more engines are asked for than this machine can run; a cluster has its own machines.

    The size of a KV cache is left to vLLM, which knows the kinds of a model's layers.

    Raises:
        UsageError: It has too little memory, or too few cores or GPUs. Names the number that fits.
    """
    pool, engine = job.pool, job.engine
    if pool.ray_address not in (None, "local"):
        return
    found = _check_model(job) if engine.kind == "vllm" else check_processes(pool.kind, pool.workers)
    if found.fits is False:
        raise UsageError(
            f"the engines do not fit on this machine: {found.reason}; nothing was started. "
            "`--force` of run and retry starts them all the same"
        )


def check_processes(pool_kind: str, workers: int | None) -> MemoryFit:
    """Return whether so many processes without a model can be started here."""
    cores = len(list_cores())
    most = LIGHT_PER_CORE * cores
    if pool_kind == "local" or workers is None or workers <= most:
        return MemoryFit(fits=True, reason="engines without weights")
    return MemoryFit(fits=False, reason=f"{workers} processes on {cores} cores; use --workers {most}")


def _check_model(job: ResolvedJob) -> MemoryFit:
    engine, pool = job.engine, job.pool
    files = engine.model.gguf or engine.model.path
    weights = engine.weights_bytes
    if weights is None and files is not None:
        weights = weigh_model(str(files), None, engine.device).weights_bytes
    need = EngineNeed(
        weights_bytes=weights,
        sample_bytes=None,
        parts=engine.tensor_parallel_size * engine.pipeline_parallel_size,
    )
    memory = MachineMemory(
        device=engine.device,
        memory_bytes=total_memory_bytes(),
        gpu_bytes=list_shares(pool.engines_per_gpu) if engine.device == "cuda" else (),
        engines=count_engines(pool.kind, pool.workers, engine.device),
        cores=len(list_cores()),
    )
    return check_memory(need, memory)


def list_shares(engines_per_gpu: int) -> list[int]:
    """Return the memory in bytes of each share of this machine's GPUs; an engine takes one or more."""
    return [size // engines_per_gpu for size in list_gpu_memory() for _ in range(engines_per_gpu)]


def count_engines(pool_kind: str, workers: int | None, device: Device) -> int | None:
    """Return how many engines a job starts on this machine; None: one per group of GPUs."""
    if pool_kind == "local":
        return 1
    return workers or (len(list_cores()) if device == "cpu" else None)


def _check_count(need: EngineNeed, memory: MachineMemory) -> MemoryFit | None:
    """Return why there are too few cores or GPUs for the number of engines, None if there are enough."""
    engines = memory.engines or 1
    if memory.device == "cpu":
        if memory.cores is None or engines <= memory.cores:
            return None
        reason = f"{engines} engines on {memory.cores} cores, one each; use --workers {memory.cores}"
        return MemoryFit(fits=False, reason=reason)
    count = len(memory.gpu_bytes)
    if not count or count < need.parts or engines <= count // need.parts:
        return None  # A machine too small for one engine is another case.
    gpus = f"{engines} engines take {engines * need.parts} GPUs, and this machine has {count}"
    return MemoryFit(fits=False, reason=f"{gpus}; use --workers {count // need.parts}")


def _check_cpu(need: EngineNeed, memory: MachineMemory) -> MemoryFit:
    engines = memory.engines or 1
    weights, sample = need.weights_bytes or 0, need.sample_bytes or 0
    each = weights + sample + PROCESS_BYTES
    sizes = (
        f"{engines} x ({_gb(weights)} weights + {_describe_cache(need)} + "
        f"{_gb(PROCESS_BYTES)} process) = {_gb(engines * each)} of {_gb(memory.memory_bytes)} RAM"
    )
    by_memory = int(memory.memory_bytes // each)
    most = by_memory if memory.cores is None else min(by_memory, memory.cores)
    if engines > by_memory:
        hint = f"use --workers {most}" if most else "use a smaller or quantized model, or GPUs"
        return MemoryFit(fits=False, reason=f"{sizes}: does not fit; {hint}")
    if too_many := _check_count(need, memory):
        return too_many
    cache = memory.cache_bytes or min(
        CPU_KV_CACHE_BYTES, memory.memory_bytes // (_OF_MEMORY_FOR_CACHES * engines)
    )
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
