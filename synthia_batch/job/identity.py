"""The identity of a job: what must be equal for a run to be resumed, and its short name.

What belongs to a job's identity: all that decides about the bytes of its output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from synthia_batch.core.digest import digest_json
from synthia_batch.job.dotted import flatten
from synthia_batch.job.resolved import EngineSpec, PlanSpec, PromptSpec
from synthia_batch.job.sampling import identify_sampling
from synthia_batch.job.schema import OnOverflow

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


@dataclass(frozen=True, slots=True, kw_only=True)
class InputIdentity:
    """Which rows a job has. `columns` are the ones that the input was found to have."""

    digest: str
    columns: Mapping[str, Any]
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """What decides about the last bits of a logit, beside the engine's specification.

    `hardware` is None for an engine that computes alike on any. `structures` is what keeps answers to
    their structure, None where nothing has to.
    """

    version: str
    hardware: str | None
    structures: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityParts:
    """All that an identity is made of. `model_digests` are those of weights and tokenizer.

    `on_overflow` is None where no row has a later turn. `flags` is empty where none are asked for, else
    their `names`, whether it `drops`, and what tells languages. `quantization` is the checkpoint's own word,
    `adapter_column` what names a row's LoRA adapter.
    """

    input: InputIdentity
    plan: PlanSpec
    prompt: PromptSpec
    engine: EngineSpec
    model_digests: Mapping[str, str]
    numerics: Numerics
    on_overflow: OnOverflow | None
    quantization: str | None = None
    adapter_column: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)


def identify(parts: IdentityParts) -> dict[str, Any]:
    """Return the identity, as JSON can say it: two jobs whose output may differ differ in it."""
    plan, engine = parts.plan, parts.engine
    # Only where it decides about anything: other jobs stay what they were.
    conversation = {"on_overflow": parts.on_overflow} if parts.on_overflow else {}
    return {
        "output_format": OUTPUT_FORMAT,
        "input": {
            "digest": parts.input.digest,
            # As found, so that a default said aloud changes nothing.
            "columns": dict(parts.input.columns),
            # As said: whether a limit leaves a row out takes the whole input to know.
            "limit": parts.input.limit,
        },
        # A list, since a sample's ordinal depends on the order.
        "system": [[system.name, digest_text(system.text)] for system in plan.systems],
        "replace_own_system": plan.replace_own_system,
        "prompt": {
            "format": parts.prompt.format,
            "template": digest_text(parts.prompt.template or ""),
            "special_tokens": dict(parts.prompt.special_tokens),
        },
        "model": {
            "name": engine.model.name,
            "revision": engine.model.revision,
            "trust_remote_code": engine.model.trust_remote_code,
            "dtype": engine.dtype,
            # Said aloud, what the checkpoint says of itself changes nothing.
            "quantization": engine.quantization or parts.quantization,
            "max_model_len": None if engine.is_elsewhere else engine.max_model_len,
            **parts.model_digests,
        },
        # Only where there are any: jobs without are what they were.
        **_identify_adapters(parts),
        "sampling": identify_sampling(engine.sampling),
        "seed": plan.seed,
        "num_samples": plan.num_samples,
        **conversation,
        **({"flags": dict(parts.flags)} if parts.flags else {}),
        **_identify_structure(engine),
        "determinism": engine.determinism,
        "engine": _identify_engine(engine, parts.numerics),
    }


def _identify_adapters(parts: IdentityParts) -> dict[str, Any]:
    adapters = {adapter.name: adapter.digest for adapter in parts.engine.adapters}
    return {"lora": {"adapters": adapters, "column": parts.adapter_column}} if adapters else {}


def _identify_structure(engine: EngineSpec) -> dict[str, Any]:
    structure = engine.structure
    # The text, not its file: reading it in the plan tells what the answers are.
    return {"structured": {structure.kind: structure.text}} if structure is not None else {}


def digest_text(text: str) -> str:
    """Return the first 16 bytes of the text's BLAKE3, in hex."""
    return blake3(text.encode()).hexdigest(length=16)


def _identify_engine(engine: EngineSpec, numerics: Numerics) -> dict[str, Any]:
    identity: dict[str, Any] = {"kind": engine.kind, **select_identity_settings(engine.settings)}
    if engine.parses_reasoning:  # Of old the setting was vLLM's alone, and changed no column.
        identity["parses_reasoning"] = True
    if engine.determinism == "fast":
        return identity
    identity["version"] = numerics.version
    if numerics.structures is not None:
        identity["structures"] = numerics.structures
    if numerics.hardware is not None:
        identity["hardware"] = numerics.hardware
        identity["tensor_parallel_size"] = engine.tensor_parallel_size
        identity["pipeline_parallel_size"] = engine.pipeline_parallel_size
    return identity
