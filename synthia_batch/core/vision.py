"""Keeps packages for images and sound, which text generation does not need, from breaking transformers.

vLLM requires torchvision. pip installs its build for CUDA from PyPI beside a torch for CPUs, and then
`import torchvision` fails, and `import transformers` with it.
"""

import sys
from importlib import metadata

_PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def hide_other_builds() -> None:
    """Make those packages count as not installed in this process if they are no builds for its CPU torch."""
    if not _is_for_cpus("torch"):
        return
    for name in _PACKAGES:
        if not _is_for_cpus(name):
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # makes the import fail


def _is_for_cpus(package: str) -> bool:
    """Whether the installed build of `package` is one for CPUs, such as 2.13.0+cpu."""
    try:
        return metadata.version(package).endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False
