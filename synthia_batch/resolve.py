"""From what was said to a job with no maybes: files are looked up, digested and asked here."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from synthia_batch.digest import DigestCache, digest_file, open_digest_cache
from synthia_batch.engine.vllm_settings import check_settings
from synthia_batch.errors import UsageError
from synthia_batch.hardware import detect_device, installed_vllm, name_cpu, name_gpus
from synthia_batch.job.declared import Job
from synthia_batch.job.fingerprint import OUTPUT_FORMAT, fingerprint, select_identity_settings
from synthia_batch.job.layers import Layer, Merged, merge_layers
from synthia_batch.job.presets import read_preset
from synthia_batch.job.resolved import (
    EngineSpec,
    ModelRef,
    PlanSpec,
    PoolSpec,
    PromptSpec,
    ResolvedJob,
    SystemText,
)
from synthia_batch.models.locate import ModelFacts, digest_model, locate_model, read_model_facts
from synthia_batch.prompts.formats import ChatFormat, PlainChatFormat, PromptFormat, SynthiaFormat
from synthia_batch.prompts.library import select_system_message
from synthia_batch.prompts.tokenizer import ByteTokenizer, FastTokenizer, Renderer
from synthia_batch.source.base import Selection

SCRIPTED_MODEL_LEN = 8192
SYSTEM_COLUMN = "column"
"""The name of a system message that comes from the row's system column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The model of a job and what its files say; nothing of it for an engine without a model."""

    ref: ModelRef
    facts: ModelFacts | None
    digests: Mapping[str, str]


def resolve_job(layers: Sequence[Layer], say: Callable[[str], None]) -> ResolvedJob:
    """Return the job that `layers`, strongest first, come to. Reads files; changes none but caches.

    Raises:
        UsageError: The job cannot be used as it was said.
        ModelUnavailable: Its model is not to be had.
    """
    cache = open_digest_cache()
    merged = _add_preset(layers)
    found = _find_model(merged, cache, say)
    if found.facts is not None and found.facts.generation:
        recommended = Layer(
            origin="the model's generation_config", values={"sampling": dict(found.facts.generation)}
        )
        merged = merge_layers([*_with_preset(layers, merged.job), recommended])
    return _resolve(merged, found, cache)


def open_renderer(spec: PromptSpec) -> Renderer:
    """Return what renders the job's conversations to token ids."""
    tokenizer = ByteTokenizer() if spec.tokenizer is None else FastTokenizer(spec.tokenizer)
    return Renderer(open_format(spec), tokenizer)


def open_format(spec: PromptSpec) -> PromptFormat:
    """Return the job's prompt format."""
    if spec.format == "synthia":
        return SynthiaFormat()
    if spec.template is None:
        return PlainChatFormat()
    return ChatFormat(spec.template, spec.special_tokens)


def select_rows(job: ResolvedJob) -> Selection:
    """Return what the job asks of its input."""
    said = job.declared.input
    return Selection(
        prompt_column=said.prompt_column,
        messages_column=said.messages_column,
        system_column=said.system_column,
        id_column=said.id_column,
        keep_columns=said.keep_columns,
        limit=said.limit,
    )


def _add_preset(layers: Sequence[Layer]) -> Merged:
    return merge_layers(_with_preset(layers, merge_layers(layers).job))


def _with_preset(layers: Sequence[Layer], job: Job) -> list[Layer]:
    return [*layers, read_preset(job.preset)] if job.preset else list(layers)


def _find_model(merged: Merged, cache: DigestCache, say: Callable[[str], None]) -> _Found:
    model = merged.job.model
    if merged.job.engine.kind == "scripted" and merged.origins["model.name"] == "default":
        ref = ModelRef(name="scripted", path=None, repo_id=None, revision=None, trust_remote_code=False)
        return _Found(ref=ref, facts=None, digests={})
    located = locate_model(model.name, model.revision)
    ref = ModelRef(
        name=located.name,
        path=located.path,
        repo_id=located.repo_id,
        revision=located.revision,
        trust_remote_code=model.trust_remote_code,
    )
    return _Found(
        ref=ref,
        facts=read_model_facts(located.path),
        digests=digest_model(located.path, cache),
    )


def _resolve(merged: Merged, found: _Found, cache: DigestCache) -> ResolvedJob:
    job = merged.job
    if job.input.system_column and merged.origins["system"] != "default":
        raise UsageError(
            "a system message was named, and a column to take it from as well (--system and "
            "--system-column); name one of the two"
        )
    if not job.input.path.is_file():
        raise UsageError(f"{job.input.path}: no such file; name a JSONL or Parquet file of prompts")
    prompt = _choose_format(job, found)
    plan = _choose_systems(merged)
    engine = _specify_engine(job, found, prompt)
    identity = _identify(job, found, prompt, plan, engine, digest_file(job.input.path, cache))
    name = job.name or _name_after(job.input.path)
    mark = fingerprint(identity)
    return ResolvedJob(
        name=name,
        declared=job,
        input_path=job.input.path,
        output=job.output or Path("outputs") / f"{name}-{mark[:8]}",
        model=found.ref,
        plan=plan,
        prompt=prompt,
        engine=engine,
        pool=PoolSpec(
            kind=job.pool.kind,
            workers=job.pool.workers,
            ray_address=job.pool.ray_address or os.environ.get("RAY_ADDRESS") or None,
            watchdog_seconds=job.pool.watchdog_seconds,
        ),
        identity=identity,
        fingerprint=mark,
        origins=merged.origins,
    )


def _choose_format(job: Job, found: _Found) -> PromptSpec:
    template = found.facts.chat_template if found.facts else None
    if job.prompt_format == "chat" and found.facts and template is None:
        raise UsageError(
            f"--set prompt_format=chat: {found.ref.name} has no chat template; use prompt_format=synthia, "
            "or add a chat_template.jinja to the model"
        )
    bare = found.facts is None and job.prompt_format != "synthia"
    chat = job.prompt_format == "chat" or (job.prompt_format == "auto" and template is not None)
    return PromptSpec(
        format="plain" if bare else "chat" if chat else "synthia",
        template=template if chat else None,
        special_tokens=found.facts.special_tokens if found.facts else {},
        tokenizer=found.facts.tokenizer_path if found.facts else None,
    )


def _choose_systems(merged: Merged) -> PlanSpec:
    job = merged.job
    if job.input.system_column:
        systems = [SystemText(name=SYSTEM_COLUMN, text="")]
    else:
        chosen = [select_system_message(spec) for spec in job.system]
        systems = [SystemText(name=message.name, text=message.text) for message in chosen]
    names = [system.name for system in systems]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--system: {', '.join(names) or 'none at all'}; name each system message once")
    return PlanSpec(
        systems=tuple(systems),
        system_column=job.input.system_column,
        replace_own_system=bool(job.input.system_column) or merged.origins["system"] != "default",
        num_samples=job.num_samples,
        seed=job.seed,
    )


def _specify_engine(job: Job, found: _Found, prompt: PromptSpec) -> EngineSpec:
    known = found.facts.max_model_len if found.facts else SCRIPTED_MODEL_LEN
    length = job.model.max_model_len or known
    if length is None:
        raise UsageError(
            f"{found.ref.name}: its config.json does not say how long a sequence may be; "
            "say it with --set model.max_model_len=TOKENS"
        )
    if job.engine.kind == "scripted":
        from synthia_batch.engine.scripted_engine import parse_options

        parse_options(job.engine.settings)
    elif installed_vllm() is None:
        raise UsageError(
            "vLLM is not installed: `pip install 'synthia-batch[cuda]'` on a GPU machine, "
            "'synthia-batch[cpu]' elsewhere; or rehearse with --engine scripted"
        )
    else:
        check_settings(job.engine.settings)
    stop = tuple(dict.fromkeys((*job.sampling.stop, *open_format(prompt).stop)))
    return EngineSpec(
        kind=job.engine.kind,
        model=found.ref,
        device=detect_device() if job.engine.device == "auto" else job.engine.device,
        dtype=job.model.dtype,
        quantization=job.model.quantization,
        max_model_len=length,
        sampling=job.sampling.model_copy(update={"stop": stop}),
        determinism=job.determinism,
        tensor_parallel_size=job.pool.tensor_parallel_size,
        pipeline_parallel_size=job.pool.pipeline_parallel_size,
        settings=job.engine.settings,
    )


def _identify(
    job: Job, found: _Found, prompt: PromptSpec, plan: PlanSpec, engine: EngineSpec, input_digest: str
) -> dict[str, Any]:
    selection = job.input.model_dump(mode="json", exclude={"path"})
    identity: dict[str, Any] = {
        "output_format": OUTPUT_FORMAT,
        "input": {"digest": input_digest, **selection},
        "system": {system.name: _digest_text(system.text) for system in plan.systems},
        # The digest of an object does not know the order of its keys; ordinals depend on it.
        "system_order": [system.name for system in plan.systems],
        "replace_own_system": plan.replace_own_system,
        "prompt": {
            "format": prompt.format,
            "template": _digest_text(prompt.template or ""),
            "special_tokens": dict(prompt.special_tokens),
        },
        "model": {
            "name": found.ref.name,
            "revision": found.ref.revision,
            "trust_remote_code": found.ref.trust_remote_code,
            "dtype": engine.dtype,
            "quantization": engine.quantization,
            "max_model_len": engine.max_model_len,
            **found.digests,
        },
        "sampling": engine.sampling.model_dump(mode="json"),
        "seed": job.seed,
        "num_samples": job.num_samples,
        "determinism": job.determinism,
        "engine": {"kind": engine.kind, **select_identity_settings(engine.settings)},
    }
    if job.determinism == "strict":
        identity["engine"] |= _identify_numerics(engine)
    return identity


def _identify_numerics(engine: EngineSpec) -> dict[str, Any]:
    """Return what decides the last bits of a logit: versions, hardware and how the model is split."""
    if engine.kind == "scripted":
        from synthia_batch.engine.scripted_engine import VERSION

        return {"version": VERSION}
    return {
        "version": " ".join(installed_vllm() or ()),
        "hardware": name_cpu() if engine.device == "cpu" else _name_gpu_kind(),
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
    }


def _name_gpu_kind() -> str:
    """Return this machine's GPU model. A driver without one leaves it to the canary, which a
    resumed run must answer as the first did.
    """
    return ", ".join(sorted(set(name_gpus()))) or "as the canary says"


def _digest_text(text: str) -> str:
    return blake3(text.encode()).hexdigest(length=16)


def _name_after(path: Path) -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in path.stem).lstrip("._-")
    return name or "job"
