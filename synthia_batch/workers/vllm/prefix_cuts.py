"""A patch of vLLM's prefix cache: a request takes cached blocks only up to the cut that it names.

By itself vLLM takes all the blocks it finds, so that where a prompt is cut depends on what was computed
before. With the patch, a request whose `extra_args` have ARGUMENT takes exactly the tokens up to its last
cut; one that cannot, or was preempted, is noted in MISSES. The cuts are also part of the hash of each block:
blocks that were cut otherwise, or filled while an answer was generated, are never found. Requests without
ARGUMENT are not affected.

Where the engine core runs in this process, `install` is called. vLLM itself calls `install_if_asked` in each
of its processes, as a plugin (`vllm.general_plugins` in pyproject.toml).

Patched, in vLLM 0.32.0: v1/core/kv_cache_utils.py `generate_block_hash_extra_keys`, the part of a block's
hash beside its tokens; v1/core/kv_cache_manager.py `KVCacheManager.get_computed_blocks`, the look-up.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

ASKED = "SYNTHIA_BATCH_CUTS_PREFIXES"
"""The variable that is 1 in the processes of an engine whose requests have ARGUMENT."""
ARGUMENT = "synthia_batch_prefix"
MISSES: dict[str, int] = {}
"""By name, requests that found fewer tokens in the cache than they were to take, and how many they found.

Only where the engine core runs in this process. Elsewhere the output of a request says what it has taken.
"""


def name_cuts(name: str, cuts: Sequence[int], taken: int) -> dict[str, Any]:
    """Return the `extra_args` of the request `name`, cut at `cuts`, that takes the first `taken` tokens."""
    return {ARGUMENT: {"name": name, "cuts": list(cuts), "taken": taken}}


def install_if_asked() -> None:
    """Patch vLLM in this process if its environment, which it shares with the worker's, asks for it."""
    if os.environ.get(ASKED) == "1":
        install()


def install() -> None:
    """Patch vLLM in this process, once.

    AttributeError if vLLM has moved the functions: no engine is better than a false guarantee.
    """
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.kv_cache_manager import KVCacheManager

    if hasattr(KVCacheManager.get_computed_blocks, "takes_cuts"):
        return
    list_keys = kv_cache_utils.generate_block_hash_extra_keys
    look_up = KVCacheManager.get_computed_blocks

    @functools.wraps(list_keys)
    def list_keys_with_cut(request: Any, start: int, end: int, *others: Any) -> Any:
        keys, *more = list_keys(request, start, end, *others)
        rule = _find_rule(request)
        if rule is not None:
            cut = next((cut for cut in rule["cuts"] if end <= cut), None)
            # Behind the last cut nobody else may find it.
            keys = (*(keys or ()), ("cut", cut) if cut is not None else ("request", rule["name"]))
        return keys, *more

    @functools.wraps(look_up)
    def look_up_to_cut(manager: Any, request: Any) -> Any:
        rule = _find_rule(request)
        if rule is None:
            return look_up(manager, request)
        found = look_up(manager, _Capped(request, rule["taken"]))  # type: ignore[arg-type]
        # What was preempted would go on with its answer computed as a prompt, which has other bits.
        if found[1] != rule["taken"] or request.num_preemptions:
            MISSES[rule["name"]] = found[1]
            # Its blocks are cut otherwise than their hashes say: nobody may find them.
            request.block_hashes[:] = [
                b"%s %d" % (rule["name"].encode(), n) for n in range(len(request.block_hashes))
            ]
        return found

    look_up_to_cut.takes_cuts = True  # type: ignore[attr-defined]
    kv_cache_utils.generate_block_hash_extra_keys = list_keys_with_cut  # type: ignore[assignment]
    KVCacheManager.get_computed_blocks = look_up_to_cut  # type: ignore[method-assign,assignment]


class _Capped:
    """A request of vLLM's that seems to end behind the token that follows the first `limit`."""

    def __init__(self, request: Any, limit: int) -> None:
        self._request = request
        self.num_tokens = limit + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def _find_rule(request: Any) -> Mapping[str, Any] | None:
    params = request.sampling_params
    arguments = params.extra_args if params is not None else None
    rule: Mapping[str, Any] | None = arguments.get(ARGUMENT) if arguments else None
    return rule
