"""Environment variables that keep libraries from phoning home, for the driver and its workers."""

import os

PRIVACY = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Turn off the usage statistics of vLLM, the Hub and Ray."""


def keep_private() -> None:
    """Set the variables of `PRIVACY` in this process, except those that the user has set.

    Call it before importing a library: most read theirs once, on import.
    """
    for name, value in PRIVACY.items():
        os.environ.setdefault(name, value)
