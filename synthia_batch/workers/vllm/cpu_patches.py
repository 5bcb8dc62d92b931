"""Patches of vLLM's CPU engine: a KV cache that is zeroed on first use, and a fix for LoRA batches."""

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

LAZY_BYTES = 2**28
"""Tensors of at least this size are the KV cache: everything else that vLLM zeroes is far smaller."""


@contextmanager
def lazy_zeros() -> Iterator[None]:
    """Within the block, make `torch.zeros` leave the zeroing of large int8 tensors to the kernel.

    vLLM zeroes the whole cache at startup, which takes seconds per GiB. Fresh anonymous memory is zero
    anyway, and only allocated when first touched.
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
            raise MemoryError(f"no memory for a KV cache of {size_bytes} bytes") from exc
        raise
    memory.madvise(mmap.MADV_HUGEPAGE)
    # The tensor keeps the mapping alive.
    return torch.frombuffer(memory, dtype=torch.int8)


def skip_rows_without_adapter() -> None:
    """Make vLLM's CPU kernels apply no adapter to rows that name none.

    Such a row has the index -1, for which vLLM 0.32.0 uses the last adapter: in a mixed batch the row is
    answered as if it had named that one (vllm#48421 and #49656, both open). The patch zeroes the row's
    shrunk vector, so nothing is added to it. AttributeError if vLLM has moved the function: no engine is
    better than another adapter's answers.
    """
    shrink = lora_ops.bgmv_shrink
    if getattr(shrink, "skips_rows", False):
        return

    def shrink_masked(
        inputs: torch.Tensor,
        weights: torch.Tensor,
        output: torch.Tensor,
        indices: torch.Tensor,
        scaling: float = 1.0,
    ) -> None:
        shrink(inputs, weights, output, indices, scaling)
        output.masked_fill_((indices < 0).unsqueeze(-1), 0.0)

    marked: Any = shrink_masked
    marked.skips_rows = True
    # Prefill looks it up in its own module, through sgmv_shrink; decode where it was imported.
    lora_ops.bgmv_shrink = marked
    punica_cpu.bgmv_shrink = marked  # type: ignore[attr-defined]
