"""VLLM_* variables that the user's shell passes to an engine without the job naming them."""

import os
import re
from collections.abc import Collection, Mapping, MutableMapping

CLEARED = "SYNTHIA_CLEARED_VARIABLES"
"""Holds the names of the variables that were cleared in this process."""
_HARMLESS = re.compile(
    r"VLLM_(?:"
    r"(?:LOG|LOGGING|USAGE|DEBUG|MEDIA|IMAGE|VIDEO|AUDIO|RAY|DP|NIXL|P2P|EC|MOONCAKE|HTTP|NCCL|BUILD|LORA_RESOLVER"
    r"|CUDA_COMPATIBILITY|ASSETS_CACHE|CONFIG|CACHE|XLA_CACHE|RPC|HOST|LOOPBACK|TARGET|MAIN_CUDA)_\w+"
    r"|\w+_TIMEOUT(?:_S|_SECONDS)?|\w+_CACHE_MB|\w+_CACHE_DIR"
    r"|ALLOW_INSECURE_SERIALIZATION|ALLOW_LONG_MAX_MODEL_LEN|API_KEY|CONFIGURE_LOGGING|CPU_KVCACHE_SPACE"
    r"|CPU_NUM_OF_RESERVED_CPU|CPU_OMP_THREADS_BIND|CUDART_SO_PATH|DISABLE_COMPILE_CACHE|DISABLE_LOG_LOGO"
    r"|DISABLE_REQUEST_ID_RANDOMIZATION|DO_NOT_TRACK|ENABLE_CUDA_COMPATIBILITY|ENABLE_V1_MULTIPROCESSING"
    r"|GC_DEBUG|KEEP_ALIVE_ON_ENGINE_DEATH|NO_USAGE_STATS|PLUGINS|PORT|PROCESS_NAME_PREFIX"
    r"|RINGBUFFER_WARNING_INTERVAL|SERVER_DEV_MODE|SKIP_P2P_CHECK|TRACE_FUNCTION|USE_MODELSCOPE"
    r"|USE_SPINLOOP_EXT|V1_OUTPUT_PROC_CHUNK_SIZE|WORKER_MULTIPROC_METHOD)"
)
"""Variables of vLLM 0.26 to 0.33 that change no token: logs, addresses, time limits, caches, start-up. A list
of these is safer than one of the others, which is longer and grows with each release."""


def list_leftovers(environment: Mapping[str, str], own: Collection[str]) -> tuple[str, ...]:
    """Return the variables of vLLM in `environment` that may change tokens, except this package's `own`."""
    return tuple(
        name
        for name in sorted(environment)
        if name.startswith("VLLM_") and name not in own and not _HARMLESS.fullmatch(name)
    )


def clear_leftovers(environment: MutableMapping[str, str], own: Collection[str]) -> None:
    """Remove the variables of `list_leftovers`, and note their names in CLEARED."""
    names = list_leftovers(environment, own)
    for name in names:
        del environment[name]
    if names:
        environment[CLEARED] = " ".join(names)


def describe_leftovers(own: Collection[str]) -> str:
    """Return what was cleared in this process and what is still set, for numerics; "" if nothing."""
    cleared = os.environ.get(CLEARED)
    kept = [f"{name}={os.environ[name]}" for name in list_leftovers(os.environ, own)]
    return ", ".join([*([f"cleared {cleared}"] if cleared else []), *kept])
