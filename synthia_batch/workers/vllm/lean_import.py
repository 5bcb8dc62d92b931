"""Brings vLLM into an eager engine's process without torch's compiler, which it has no use for."""

import sys

_INDUCTOR = "torch._inductor.lowering"


def import_without_inductor() -> None:
    """Import vllm, and nothing of the compiler behind `torch.compile`.

    vLLM 0.32.0 imports it first of all, to have it log less, and goes without where it cannot be imported.
    TORCHDYNAMO_DISABLE must be set: the decorators of vLLM's functions would import it after all.
    """
    if _INDUCTOR in sys.modules:
        return
    sys.modules[_INDUCTOR] = None  # type: ignore[assignment]  # what an import takes for "there is none"
    try:
        import vllm  # noqa: F401
    finally:
        del sys.modules[_INDUCTOR]
