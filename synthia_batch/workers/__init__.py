"""Everything that runs in, or starts, a worker process. `engine` is the contract of the engines."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from synthia_batch.core.errors import PoolFailed, SynthiaBatchError
from synthia_batch.core.formatting import shorten
from synthia_batch.job.resolved import EngineSpec
from synthia_batch.workers.engine import Engine, Placement
from synthia_batch.workers.environment import compiles, prepare_environment
from synthia_batch.workers.vllm.policy import check_files

if TYPE_CHECKING:
    from synthia_batch.workers.vllm.engine import VllmEngine


def load_engine(spec: EngineSpec, placement: Placement) -> Engine:
    """Return the engine that `spec` describes, loaded: seconds for a small model, minutes for a large.

    Call it in the thread that will own the engine's memory, before anything has imported vllm.

    Raises:
        PoolFailed: The engine's packages cannot be imported, now or on any other try.
        UsageError: The engine does not accept the settings.
        EngineOutOfMemory: It does not fit in the memory.
    """
    if spec.kind == "scripted":
        from synthia_batch.workers.scripted import ScriptedEngine

        return ScriptedEngine(spec, placement)
    if spec.kind == "openai":
        from synthia_batch.workers.openai.engine import OpenAIEngine

        return OpenAIEngine(spec, placement)
    check_files(spec)
    prepare_environment(spec, placement)
    with import_errors():
        return import_vllm_engine(spec)(spec, placement)


@contextmanager
def import_errors() -> Iterator[None]:
    """Convert the errors of packages that cannot be imported to PoolFailed: loading again would not help."""
    try:
        yield
    except (SynthiaBatchError, MemoryError):
        raise
    except Exception as exc:
        if not _rose_in_import(exc):
            raise
        cause = shorten(f"{type(exc).__name__}: {exc}", 300)
        raise PoolFailed(
            f"the engine cannot be imported: {cause}; install its packages again as `make setup` does, and "
            "check them with `synthia-batch doctor`"
        ) from exc


def _rose_in_import(exc: Exception) -> bool:
    """Whether `exc` is about an import, or rose while the body of a module ran."""
    trace = exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "<module>":
            return True
        trace = trace.tb_next
    return isinstance(exc, ImportError)


def import_vllm_engine(spec: EngineSpec) -> type["VllmEngine"]:
    """Return the class of vLLM engines. Takes seconds; call `prepare_environment` first."""
    with _paused_collector():
        if not compiles(spec):
            from synthia_batch.workers.vllm.lean_import import import_without_inductor

            import_without_inductor()
        from synthia_batch.workers.vllm.engine import VllmEngine
    return VllmEngine


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Collect no garbage within the block, and never collect the objects created in it.

    Importing vLLM creates a million permanent objects. Scanning them repeatedly takes a sixth of the import
    time, and the same share of each full collection that vLLM triggers while loading.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
