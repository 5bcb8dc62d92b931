"""A KV cache on CPUs that costs memory, and the time to zero it, only as far as it is used."""

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

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
