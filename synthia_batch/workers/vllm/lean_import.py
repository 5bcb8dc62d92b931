"""Imports vLLM without torch's compiler, which eager engines do not use."""

import sys

_INDUCTOR = "torch._inductor.lowering"


def import_without_inductor() -> None:
    """Import vllm, but not the compiler behind `torch.compile`.

    vLLM 0.32.0 imports the compiler first, to reduce its logging, and continues if the import fails.
    TORCHDYNAMO_DISABLE must be set, or the decorators of vLLM's functions import it anyway.
    """
    if _INDUCTOR in sys.modules:
        return
    sys.modules[_INDUCTOR] = None  # type: ignore[assignment]  # makes the import fail
    try:
        import vllm  # noqa: F401
    finally:
        del sys.modules[_INDUCTOR]
