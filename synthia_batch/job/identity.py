"""The identity of a job: everything that determines the bytes of its output, and its fingerprint.

It must be equal for a run to be resumed. The class of each key stands on its field in the schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from synthia_batch.core.digest import digest_json
from synthia_batch.core.errors import IdentityMismatch
from synthia_batch.core.masking import change_secret_fields
from synthia_batch.job.dotted import flatten
from synthia_batch.job.keys import walk_keys
from synthia_batch.job.markers import IdentityClass, always, strict
from synthia_batch.job.resolved import CPU_BLOCK_SIZE, PREFIX_CUTS, EngineSpec, PlanSpec, PromptSpec
from synthia_batch.job.sampling import identify_sampling
from synthia_batch.job.schema import TEMPLATE_DATE, OnOverflow

OUTPUT_FORMAT = 4
"""Changes when the same job would write different bytes: columns, encoding, seeds, rendering, shards."""

NOT_IDENTITY = frozenset(
    key.name.removeprefix("engine.")
    for key in walk_keys()
    if not key.is_declared and (found := key.find(IdentityClass)) and found.kind == "never"
)
"""The engine settings that may differ when a run is resumed. Every other one is part of the identity."""
_STRICT_PLACEMENT = tuple(
    key.name.removeprefix("pool.")
    for key in walk_keys()
    if key.name.startswith("pool.") and (found := key.find(IdentityClass)) and found.kind == "strict"
)
"""The keys of `pool` that are part of the identity in strict determinism."""
BESIDE_KEYS: Mapping[str, IdentityClass] = {
    "the input's own system messages": always("replace_own_system", "whether they stay"),
    "the model's files": always("model.weights", "by digest, its config with them"),
    "the tokenizer's files": always("model.tokenizer", "by digest"),
    "any other `engine.` setting": always(
        "engine", "most change tokens, and a list of those that do not is safer than one of those that do"
    ),
    "this package's format": always(
        "output_format", "columns, encoding, seeds, rendering and shards of this version"
    ),
    "where prompts are cut for the prefix cache": strict(
        "engine.prefix_cuts", "the version of the rule; not with `engine.enable_prefix_caching` false"
    ),
    "the blocks of the KV cache": strict(
        "engine.block_size", "their size in tokens: prompts are cut at blocks; only if prompts are cut"
    ),
    "vLLM's build and version": strict(
        "engine.version", "other kernels round differently; in fast it may change, and texts with it"
    ),
    "the structured-output backend": strict(
        "engine.structures", "its name and version; only if answers have a structure, or rows may set one"
    ),
}
"""The parts of the identity that are not keys of a job, by description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field in which two identities differ; None stands for a missing field."""

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before!r} before, {self.now!r} now"


def select_identity_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine settings that belong to the identity: all but secrets and those excluded by name."""
    chosen = {name: settings[name] for name in sorted(settings) if name not in NOT_IDENTITY}
    if "extra_body" in chosen:
        chosen["extra_body"] = change_secret_fields(chosen["extra_body"], lambda text: None)
        if not chosen["extra_body"]:
            del chosen["extra_body"]
    return chosen


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the 32 hex digits of the digest of `identity`; the first 8 name the run directory."""
    return digest_json(identity)[:32]


def compare_identities(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return the fields in which the identities differ, in order of their dotted names."""
    old, new = flatten(before), flatten(now)
    return tuple(
        Difference(field=field, before=old.get(field), now=new.get(field))
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    )


def refuse_differences(
    place: Path | str, before: Mapping[str, Any], now: Mapping[str, Any], advice: str
) -> None:
    """Return if both identities are equal: the run at `place` is that of the job.

    Raises:
        IdentityMismatch: It belongs to another job; every field that differs is named.
    """
    differences = compare_identities(before, now)
    if not differences:
        return
    lines = [f"{place} belongs to another job; nothing was touched. What differs:"]
    lines += [f"  {difference}" for difference in differences]
    if any(one.field == "engine.prefix_cuts" and one.before is None for one in differences):
        lines.append(
            "the run began without a prefix cache: it goes on with --set engine.enable_prefix_caching=false"
        )
    raise IdentityMismatch("\n".join([*lines, advice]))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputIdentity:
    """Which rows a job has. `columns` are those detected in the input."""

    digest: str
    columns: Mapping[str, Any]
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """Everything beside the engine's specification that affects the last bits of a logit.

    `hardware` is None for an engine whose results do not depend on it. `structures` is the
    structured-output backend, None if no answer has a structure.
    """

    version: str
    hardware: str | None
    structures: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityParts:
    """The parts of an identity. `model_digests` are those of weights and tokenizer.

    `on_overflow` is None if no row has a later turn. `flags` is empty if none are requested, or else has
    their `names`, whether it `drops`, and the language detector. `accept` is empty if every answer is
    accepted. `quantization` is the checkpoint's own method, `adapter_column` the column with a row's LoRA
    adapter.
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
    accept: Mapping[str, Any] = field(default_factory=dict)


def identify(parts: IdentityParts) -> dict[str, Any]:
    """Return the identity as JSON values. Two jobs whose outputs may differ have different ones."""
    plan, engine = parts.plan, parts.engine
    # Only if it has an effect, so that other jobs keep their identity.
    conversation = {"on_overflow": parts.on_overflow} if parts.on_overflow else {}
    return {
        "output_format": OUTPUT_FORMAT,
        "input": {
            "digest": parts.input.digest,
            # As detected, so that setting a default explicitly changes nothing.
            "columns": dict(parts.input.columns),
            # As set: only reading the whole input shows whether a limit excludes a row.
            "limit": parts.input.limit,
        },
        # A list, since a sample's ordinal depends on the order.
        "system": [[system.name, digest_text(system.text)] for system in plan.systems],
        "replace_own_system": plan.replace_own_system,
        "prompt": {
            "format": parts.prompt.format,
            "template": digest_text(parts.prompt.template or ""),
            "special_tokens": dict(parts.prompt.special_tokens),
            **_identify_arguments(parts.prompt),
        },
        "model": {
            "name": engine.model.name,
            "revision": engine.model.revision,
            "trust_remote_code": engine.model.trust_remote_code,
            "dtype": engine.dtype,
            # Setting the checkpoint's own method explicitly changes nothing.
            "quantization": engine.quantization or parts.quantization,
            "max_model_len": None if engine.is_elsewhere else engine.max_model_len,
            **parts.model_digests,
        },
        # Only if there are any, so that jobs without keep their identity.
        **_identify_adapters(parts),
        "sampling": identify_sampling(engine.sampling),
        "seed": plan.seed,
        "num_samples": plan.num_samples,
        # Only if it is set, so that other jobs keep their identity.
        **({"samples_per_file": plan.samples_per_file} if plan.samples_per_file else {}),
        **conversation,
        **({"flags": dict(parts.flags)} if parts.flags else {}),
        **({"accept": dict(parts.accept)} if parts.accept else {}),
        **_identify_structure(engine),
        "determinism": engine.determinism,
        "engine": _identify_engine(engine, parts.numerics),
    }


def _identify_arguments(prompt: PromptSpec) -> dict[str, Any]:
    # Each only if it is not the default, so that other jobs keep their identity.
    kwargs = {"kwargs": dict(prompt.kwargs)} if prompt.kwargs else {}
    return kwargs | ({"day": prompt.day} if prompt.day != TEMPLATE_DATE else {})


def _identify_adapters(parts: IdentityParts) -> dict[str, Any]:
    adapters = {adapter.name: adapter.digest for adapter in parts.engine.adapters}
    return {"lora": {"adapters": adapters, "column": parts.adapter_column}} if adapters else {}


def _identify_structure(engine: EngineSpec) -> dict[str, Any]:
    structure = engine.structure
    # The text, not its path, so that the plan shows the structure of the answers.
    return {"structured": {structure.kind: structure.text}} if structure is not None else {}


def digest_text(text: str) -> str:
    """Return the first 16 bytes of the text's BLAKE3, in hex."""
    return blake3(text.encode()).hexdigest(length=16)


def _identify_engine(engine: EngineSpec, numerics: Numerics) -> dict[str, Any]:
    identity: dict[str, Any] = {"kind": engine.kind, **select_identity_settings(engine.settings)}
    if engine.kind == "vllm" and engine.determinism == "strict":
        # Whether it is set or the default, and absent without the cache, as in runs that began before it.
        identity.pop("enable_prefix_caching", None)
        if engine.cuts_prefixes:
            identity = {"block_size": CPU_BLOCK_SIZE, "prefix_cuts": PREFIX_CUTS} | identity
    if engine.parses_reasoning:  # Formerly a setting of vLLM only, which changed no column.
        identity["parses_reasoning"] = True
    if engine.determinism == "fast":
        return identity
    identity["version"] = numerics.version
    if numerics.structures is not None:
        identity["structures"] = numerics.structures
    if numerics.hardware is not None:
        identity["hardware"] = numerics.hardware
        identity |= {name: getattr(engine, name) for name in _STRICT_PLACEMENT}
    return identity
