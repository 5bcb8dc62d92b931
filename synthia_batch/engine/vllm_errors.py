"""What torch and vLLM raise, told apart in the words of this package."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from synthia_batch.errors import EngineOutOfMemory, UsageError


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn what torch and Python raise for want of memory into EngineOutOfMemory.

    An engine core in a process of its own dies of it without saying so: see `supervise`.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as exc:
        raise EngineOutOfMemory(f"{type(exc).__name__}: {exc}") from exc


@contextmanager
def setting_errors() -> Iterator[None]:
    """Turn what vLLM says of arguments that it cannot use into UsageError: loading again would not help."""
    try:
        yield
    except (TypeError, ValueError) as exc:  # pydantic's and vLLM's own validation errors are ValueErrors
        raise UsageError(
            f"vLLM cannot start with these settings: {exc}\n"
            "change what it names, with --set engine.KEY=VALUE or the model's and sampling's own flags"
        ) from exc
