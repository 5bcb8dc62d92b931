"""What the numbers were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from synthia_batch.core.hardware import installed_vllm, list_cores, name_cpu, name_gpus, total_memory_bytes

PACKAGES = ("ray", "torch", "transformers", "pyarrow", "tokenizers")


def describe_machine() -> dict[str, str]:
    """Return the machine and the versions, by what a reader calls them."""
    facts = {
        "CPU": name_cpu(),
        "cores": str(len(list_cores())),
        "memory": f"{total_memory_bytes() / 2**30:.0f} GiB",
        "GPU": ", ".join(name_gpus()) or "none",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "vLLM": " ".join(installed_vllm() or ("not installed",)),
    }
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def read_load() -> float:
    """Return the load average of the last minute: what else the machine is doing."""
    return round(os.getloadavg()[0], 2)


def count_engines(device: str) -> int:
    """Return how many engines the comparison has: one per GPU, or two on CPUs."""
    return max(1, len(name_gpus())) if device == "cuda" else min(2, len(list_cores()))
