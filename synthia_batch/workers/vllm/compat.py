"""Differences between the supported releases of vLLM. Imports nothing of vLLM until a function is called.

tests/workers/test_vllm_releases.py compares every name and argument that this package uses with the source of
each release at hand.
"""

import re
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from synthia_batch.core.errors import UsageError
from synthia_batch.job.resolved import EngineSpec

SUPPORTED = ((0, 26), (0, 33))
"""The oldest and the newest supported release: 0.26 for torch 2.11, 0.33 for new models."""
CPU_PATCHED = frozenset({(0, 32)})
"""The releases on which the tests of this package's patches of the CPU engine have run."""
BESIDE_TORCH = ("torchvision", "torchaudio", "torchcodec")
"""Packages whose build for CUDA, beside a torch for CPUs, fails the import of transformers."""
Support = Literal["supported", "older", "newer"]


def read_release(version: str) -> tuple[int, int]:
    """Return the release of a version such as 0.33.0+cu129: (0, 33). (0, 0) if it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_support(version: str) -> Support:
    """Return whether `version` of vLLM is supported, or else on which side of the range it is."""
    release = read_release(version)
    if release < SUPPORTED[0]:
        return "older"
    return "newer" if release > SUPPORTED[1] else "supported"


def describe_range() -> str:
    return " to ".join(f"{major}.{minor}" for major, minor in SUPPORTED)


def has_cpu_patches(version: str) -> bool:
    """Whether this package patches the CPU engine of vLLM `version`."""
    return read_release(version) in CPU_PATCHED


def check_cpu_patches(spec: EngineSpec, version: str) -> str | None:
    """Return a warning if the patches are left out for the CPU engine of `spec`, else None.

    Raises:
        UsageError: Its answers would be wrong, or not strictly deterministic, without them.
    """
    if spec.device != "cpu" or has_cpu_patches(version):
        return None
    tested = ", ".join(f"{major}.{minor}" for major, minor in sorted(CPU_PATCHED))
    found = f"the patches of vLLM's CPU engine are tested with vLLM {tested}, and {version} is installed"
    if spec.determinism == "strict":
        raise UsageError(
            f"{found}: without them it is not strictly deterministic; install vLLM {tested}, or use "
            "--determinism fast"
        )
    if spec.adapters:
        raise UsageError(
            f"{found}: without them a row may be answered with another row's LoRA adapter; install "
            f"vLLM {tested}"
        )
    return (
        f"{found}: they are left out; it draws tokens more slowly and takes the memory of its KV cache at "
        "once"
    )


def patch_cpu(spec: EngineSpec, version: str) -> AbstractContextManager[None]:
    """Patch the CPU engine of vLLM `version`; return the context to load it in. See `check_cpu_patches`."""
    check_cpu_patches(spec, version)
    if not has_cpu_patches(version):
        return nullcontext()
    # Here, since other releases need not have the functions that these modules replace.
    from synthia_batch.workers.vllm.batch_invariance import make_gemms_batch_invariant
    from synthia_batch.workers.vllm.cpu_patches import lazy_zeros, skip_rows_without_adapter
    from synthia_batch.workers.vllm.sampler import patch_sampler

    if spec.determinism == "strict":
        make_gemms_batch_invariant()
    patch_sampler()
    if spec.adapters:
        skip_rows_without_adapter()
    return lazy_zeros()


def advise_on_import(reason: str) -> str:
    """Return what helps if vLLM, or the code of a model, cannot be imported for this `reason`."""
    if any(name in reason for name in BESIDE_TORCH):
        return (
            f"generating text needs none of {', '.join(BESIDE_TORCH)}: uninstall them, or install the builds "
            "that belong to this torch"
        )
    return "install vLLM and torch of matching releases again"


def client_errors() -> tuple[type[Exception], ...]:
    """Return the errors by which vLLM rejects a request or a setting; Pydantic's are ValueErrors as well."""
    from vllm import exceptions

    # 0.26 has only its child VLLMValidationError, which is a ValueError there.
    found: type[Exception] | None = getattr(exceptions, "VLLMClientError", None)
    return (ValueError,) if found is None else (found, ValueError)
