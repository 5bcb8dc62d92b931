"""A KV cache on CPUs that costs memory, and the time to zero it, only as far as it is used.

Keeps LoRA adapters off the rows of a CPU batch that name none.
"""

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

LAZY_BYTES = 2**28
"""Tensors of at least this size are the KV cache: nothing else that vLLM zeroes comes near."""


@contextmanager
def lazy_zeros() -> Iterator[None]:
    """Within the block, have `torch.zeros` leave the zeroing of large byte tensors to the kernel.

    vLLM zeroes the whole cache as it starts, which takes seconds for each GiB. Fresh anonymous
    memory is zero as well, and is there only from the first touch on.
    """
    zeros = torch.zeros

    def zeros_on_touch(*size: Any, **options: Any) -> torch.Tensor:
        is_large = len(size) == 1 and isinstance(size[0], int) and size[0] >= LAZY_BYTES
        device = torch.device(options.get("device") or "cpu")
        if is_large and options.get("dtype") is torch.int8 and device.type == "cpu":
            return _map_zeros(size[0])
        return zeros(*size, **options)

    torch.zeros = zeros_on_touch
    try:
        yield
    finally:
        torch.zeros = zeros


def _map_zeros(size_bytes: int) -> torch.Tensor:
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        if exc.errno == errno.ENOMEM:
            raise MemoryError(f"no room for a KV cache of {size_bytes} bytes") from exc
        raise
    memory.madvise(mmap.MADV_HUGEPAGE)
    # The tensor keeps the mapping alive.
    return torch.frombuffer(memory, dtype=torch.int8)


def spare_rows_without_adapter() -> None:
    """Make vLLM's CPU kernels leave rows alone that no adapter is for.

    Such a row has the index -1, with which vLLM 0.32.0 takes the adapter in the last place: in a batch
    of both kinds it answers as if it had named that one (vllm#48421 and #49656, both open). What a row
    is shrunk to is zeroed here, and nothing is then added to it. Raises AttributeError where vLLM has
    moved the function: better no engine than another adapter's answers.
    """
    shrink = lora_ops.bgmv_shrink
    if getattr(shrink, "spares_rows", False):
        return

    def shrink_sparing(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        scaling: float = 1.0,
    ) -> None:
        shrink(inputs, weights, output, indices, scaling)
        output.masked_fill_((indices < 0).unsqueeze(-1), 0.0)

    marked: Any = shrink_sparing
    marked.spares_rows = True
    # Prefill finds it in its own module, by way of sgmv_shrink; decode where it was imported.
    lora_ops.bgmv_shrink = marked
    punica_cpu.bgmv_shrink = marked  # type: ignore[attr-defined]
