"""Nothing phones home: the switches of the libraries that would, for the driver and for its workers."""

import os

PRIVACY = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""The usage statistics of vLLM, the Hub and Ray, each off by its own switch."""


def keep_private() -> None:
    """Set the switches in this process; what the user has set stays as it is.

    Call it before a library is imported: most read their switch once, as they are.
    """
    for name, value in PRIVACY.items():
        os.environ.setdefault(name, value)
