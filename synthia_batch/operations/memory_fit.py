"""Whether a job's engines have the memory that they need. Pure: sizes in, a verdict out."""

from collections.abc import Sequence
from dataclasses import dataclass

from synthia_batch.job.resolved import Device
from synthia_batch.workers.vllm.arguments import CPU_KV_CACHE_BYTES, GPU_MEMORY_SHARE

PROCESS_BYTES = 10**9
"""What a CPU engine takes beside weights and KV cache: Python, torch, vLLM and its activations, about."""
_OF_MEMORY_FOR_CACHES = 4
"""A CPU engine's cache takes a quarter of its share of the memory at most (engine/vllm_arguments.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one engine needs in bytes: its weights, and the KV cache of one sample at its longest.

    None for what is not known. `parts` are the processes that it is split into.
    """

    weights_bytes: int | None
    sample_bytes: int | None
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a machine has, in bytes. `engines` is how many are to share it, None: one per GPU group."""

    device: Device
    memory_bytes: int
    gpu_bytes: Sequence[int]
    engines: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether it fits, None where that cannot be told, and why in words."""

    fits: bool | None
    reason: str


def check_memory(need: Need, room: Room) -> Verdict:
    """Return whether engines of `need` fit in `room`."""
    if need.weights_bytes is None:
        return Verdict(fits=None, reason="the size of the weights is not known here")
    return _check_cpu(need, room) if room.device == "cpu" else _check_gpu(need, room)


def _check_cpu(need: Need, room: Room) -> Verdict:
    engines = room.engines or 1
    weights, sample = need.weights_bytes or 0, need.sample_bytes or 0
    each = weights + sample + PROCESS_BYTES
    said = (
        f"{engines} x ({_gb(weights)} weights + {_describe_cache(need)} + "
        f"{_gb(PROCESS_BYTES)} process) = {_gb(engines * each)} of {_gb(room.memory_bytes)} RAM"
    )
    if engines * each > room.memory_bytes:
        most = int(room.memory_bytes // each)
        hint = f"take --workers {most}" if most else "take a smaller or quantized model, or GPUs"
        return Verdict(fits=False, reason=f"{said}: it does not fit; {hint}")
    cache = min(CPU_KV_CACHE_BYTES, room.memory_bytes // (_OF_MEMORY_FOR_CACHES * engines))
    if sample > cache:
        return Verdict(
            fits=False,
            reason=f"{said}; but an engine takes {_gb(cache)} for its KV cache: give it more with --set "
            f"engine.kv_cache_memory_bytes={sample}, or less to hold with --set model.max_model_len=TOKENS",
        )
    return Verdict(fits=True, reason=said)


def _check_gpu(need: Need, room: Room) -> Verdict:
    if not room.gpu_bytes:
        return Verdict(fits=None, reason="no GPU is seen here, so theirs is to be compared elsewhere")
    if len(room.gpu_bytes) < need.parts:
        reason = f"an engine is split over {need.parts} GPUs, and this machine has {len(room.gpu_bytes)}"
        return Verdict(fits=False, reason=f"{reason}; take fewer, or a cluster with --ray-address")
    weights, sample = need.weights_bytes or 0, need.sample_bytes or 0
    share = (weights + sample) / need.parts
    usable = min(room.gpu_bytes) * GPU_MEMORY_SHARE
    said = (
        f"({_gb(weights)} weights + {_describe_cache(need)}) / {need.parts} = "
        f"{_gb(share)} of {_gb(usable)} that an engine takes of each GPU"
    )
    if share <= usable:
        return Verdict(fits=True, reason=said)
    enough = next((parts for parts in (2, 4, 8, 16) if (weights + sample) / parts <= usable), None)
    hint = f"take --tensor-parallel-size {enough}" if enough else "take a quantized or smaller model"
    return Verdict(fits=False, reason=f"{said}: it does not fit; {hint}")


def _describe_cache(need: Need) -> str:
    if need.sample_bytes is None:
        return "a KV cache whose size is not known here"
    return f"{_gb(need.sample_bytes)} KV cache for a sample at its longest"


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
