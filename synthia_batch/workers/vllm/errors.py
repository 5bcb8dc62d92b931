"""What torch and vLLM raise, told apart in the words of this package."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from vllm.exceptions import VLLMClientError

from synthia_batch.errors import EngineOutOfMemory, UsageError

_MORE_THAN_ANY_MACHINE_HAS = 2**62


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn what torch and Python raise for want of memory into EngineOutOfMemory.

    An engine core in a process of its own dies of it without saying so: see `supervise`.
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
    """Turn what vLLM says of arguments that it cannot use into UsageError: loading again would not help."""
    try:
        yield
    except (TypeError, ValueError, VLLMClientError) as exc:  # pydantic's are ValueErrors, vLLM's not always
        raise UsageError(
            f"vLLM cannot start with these settings: {exc}\n"
            "change what it names, with --set engine.KEY=VALUE or the model's and sampling's own flags"
        ) from exc


def is_cpu_shortage(error: RuntimeError) -> bool:
    """Whether `error` is what torch raises where the CPU's allocator gets no memory.

    It has no type of its own, as a GPU's shortage has, and no code: only its text. So the text is
    not guessed here but asked of this very torch, by an allocation that must fail, and compared as
    a whole: the first line, whatever the numbers in it. What cannot be asked is no shortage.
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
