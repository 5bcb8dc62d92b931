"""Converts the errors of torch and vLLM to those of this package."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from vllm.exceptions import VLLMClientError

from synthia_batch.errors import EngineOutOfMemory, UsageError
from synthia_batch.workers.engine import describe_refusal

_MORE_THAN_ANY_MACHINE_HAS = 2**62


@contextmanager
def memory_errors() -> Iterator[None]:
    """Convert the out-of-memory errors of torch and Python to EngineOutOfMemory.

    An engine core in its own process dies of one without reporting it.
    """
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
    try:
        yield
    except (TypeError, ValueError, VLLMClientError) as exc:  # Pydantic's are ValueErrors, vLLM's not always.
        raise UsageError(
            f"vLLM cannot start with these settings: {describe_refusal(exc)}\n"
            "change the setting named above, with --set engine.KEY=VALUE or the flags of model and sampling"
        ) from exc


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
