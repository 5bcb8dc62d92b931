"""The identity of a job: what must be equal for a run to be resumed, and its short name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from synthia_batch.core.digest import digest_json
from synthia_batch.job.dotted import flatten

OUTPUT_FORMAT = 4
"""Changes when the same job would write other bytes: columns, encoding, seeds, rendering, shards."""

NOT_IDENTITY = {
    "max_num_seqs": "a batch's size does not change tokens in strict mode, and may change in fast",
    "max_num_batched_tokens": "as max_num_seqs",
    "gpu_memory_utilization": "memory: an out-of-memory night is mended with less of it",
    "kv_cache_memory_bytes": "memory",
    "cpu_offload_gb": "memory",
    "max_parallel_loading_workers": "how the weights are loaded, not what they are",
    "use_tqdm_on_load": "display",
    "disable_log_stats": "display",
    "base_url": "where the server is, not what it is",
    "api_key": "who asks the server",
    "concurrency": "as max_num_seqs",
    "timeout_seconds": "patience with a server",
    "patience_seconds": "patience with a server",
    "hf_token": "who asks for the model, not what it is",
    "latency_ms": "the scripted engine's speed",
    "load_seconds": "the scripted engine's speed",
    "call_log": "where the scripted engine logs",
    "fail_while_missing": "a rehearsed cause of failures that goes away: `retry` is then to make them",
    "crash_on": "a rehearsed fault: resuming without it is the point",
    "hang_on": "a rehearsed fault",
    "hang_load_once": "a rehearsed fault",
    "oom_above": "a rehearsed fault",
    "shows_batch_above": "a rehearsed fault",
}
"""The engine settings that may differ when a run is resumed, each with its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field in which two identities differ; None stands for a field that one lacks."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before!r} before, {self.now!r} now"


def select_identity_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those engine settings that belong to the identity: all that are not excluded by name."""
    return {name: settings[name] for name in sorted(settings) if name not in NOT_IDENTITY}


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return 32 hex digits that stand for `identity`; the first 8 name the run directory."""
    return digest_json(identity)[:32]


def compare_identities(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return the fields in which the identities differ, in order of their dotted names."""
    old, new = flatten(before), flatten(now)
    return tuple(
        Difference(field=field, before=old.get(field), now=new.get(field))
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    )
