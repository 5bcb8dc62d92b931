"""Resolve a job: merge its layers once each is known, locate and digest its files, compute its identity."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.digest import DigestCache, open_digest_cache
from synthia_batch.core.errors import ModelElsewhere, UsageError
from synthia_batch.inputs import (
    NUMBER,
    Columns,
    ResolvedInput,
    Selection,
    check_digest,
    digest_contents,
    digest_files,
    draw_columns,
    drop_refused,
    open_files,
    resolve_inputs,
)
from synthia_batch.job.dotted import flatten
from synthia_batch.job.fields import LONGEST_NAME
from synthia_batch.job.identity import IdentityParts, InputIdentity, fingerprint, identify
from synthia_batch.job.loading.merge import Layer, Merged, merge_layers
from synthia_batch.job.loading.secrets import reveal
from synthia_batch.job.presets import Preset
from synthia_batch.job.resolved import PlanSpec, PoolSpec, Remote, ResolvedJob
from synthia_batch.job.schema import MARK_LENGTH, Job
from synthia_batch.job.sections import Engine
from synthia_batch.models.prompts.tokenizer import open_format
from synthia_batch.results.quality.flags import identify_flags
from synthia_batch.runner.resolve.answers import (
    check_continued,
    check_prompt_format,
    check_requested_logprobs,
    identify_acceptance,
    read_template,
)
from synthia_batch.runner.resolve.engine_spec import add_settings, find_numerics, specify_engine
from synthia_batch.runner.resolve.kept_columns import check_kept_columns
from synthia_batch.runner.resolve.log_input import log_columns, log_lacking_model, log_other_model
from synthia_batch.runner.resolve.model_selection import (
    FoundModel,
    add_preset,
    assume_model,
    choose_adapter,
    choose_format,
    find_model,
)
from synthia_batch.runner.resolve.systems import choose_systems, log_systems, refuse_two_systems
from synthia_batch.runner.resolve.tuned import describe_place, read_tuned
from synthia_batch.workers.openai import settings as openai_settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """Everything that a job is resolved from; `explicit` has only the keys that the user set."""

    explicit: Job
    merged: Merged
    preset: str | None
    input: ResolvedInput
    template: str | None
    columns: Columns
    plan: PlanSpec
    found: FoundModel


def resolve_job(layers: Sequence[Layer], *, uses_tuned: bool = True, needs_model: bool = True) -> ResolvedJob:
    """Return the resolved job of `layers`, the strongest first. Reads files; changes none but caches.

    With `uses_tuned`, settings that `tune` found for its model and hardware are the weakest layer. Without
    `needs_model`, a model that cannot be had here leaves a job to look at: `ResolvedJob.lacks_model`.
    """
    cache = open_digest_cache()
    explicit = merge_layers(layers)
    chosen = add_preset(explicit)
    layers = chosen.layers
    is_endpoint = explicit.job.engine.kind == "openai"
    if is_endpoint:
        defaults = Layer(origin="the endpoint engine", values=openai_settings.DEFAULTS, is_explicit=False)
        layers = [*layers, defaults]
    merged = merge_layers(layers)
    refuse_two_systems(merged)
    if is_endpoint:
        openai_settings.check_job(merged)
    for url in explicit.job.notify or ():
        reveal(url, os.environ, "notify")  # Fails in the evening, not in the morning.
    # Before the model, which may take an hour to download.
    template = read_template(merged)
    declared = explicit.job.input
    resolved = resolve_inputs(
        declared.paths,
        cache,
        digest=declared.digest,
        max_row_bytes=declared.max_row_bytes,
        fails_long_rows=declared.on_bad_row == "fail",
        drawn=draw_columns(declared, explicit.job.seed),
    )
    with drop_refused(*resolved.files):
        columns = open_files(resolved.files).detect(select_rows(explicit.job, template))
    check_kept_columns(columns, merged.job, resolved.files[0].shown)
    if columns.choices is not None:
        layers = [*layers, _read_requests(merged, columns.choices)]
        merged = merge_layers(layers)
    plan = choose_systems(merged, columns)
    log_systems(merged, columns, plan)
    log_columns(columns, resolved.files[0].shown)
    resolved = dataclasses.replace(resolved, files=digest_contents(resolved.files, cache))
    with merged.locate_errors("input.digest"):
        check_digest(resolved.files, merged.job.input.digest)
    merged, found = _find_model(merged, chosen.preset, cache, needs_model=needs_model)
    log_other_model(columns, resolved.files[0].shown, found.ref)
    sources = _Sources(
        explicit=_name_copies(explicit.job, resolved),
        merged=merged,
        preset=chosen.preset.name if chosen.preset else None,
        input=resolved,
        template=template,
        columns=columns,
        plan=plan,
        found=found,
    )
    job = _resolve(sources, cache)
    tuned = read_tuned(job.tuning_place) if uses_tuned else None
    return _add_tuned(job, tuned) if tuned else job


def _find_model(
    merged: Merged, preset: Preset | None, cache: DigestCache, *, needs_model: bool
) -> tuple[Merged, FoundModel]:
    """Return the model, and the job with the layer that only the model, or its lack, shows."""
    try:
        found = find_model(merged, preset, cache)
    except ModelElsewhere as lacking:
        if needs_model:
            raise
        log_lacking_model(lacking)
        elsewhere = Layer(origin="another machine", values={"engine": {"device": "cuda"}})
        merged = merge_layers([*merged.layers, elsewhere])
        return merged, assume_model(merged.job)
    if found.facts is not None and found.facts.generation:
        # Only the merged job names the model whose files these are, so this takes a merge of its own.
        values = {"sampling": dict(found.facts.generation)}
        recommended = Layer(origin="the model's generation_config", values=values, is_explicit=False)
        merged = merge_layers([*merged.layers, recommended])
    return merged, found


def _add_tuned(job: ResolvedJob, tuned: Layer) -> ResolvedJob:
    """Return `job` with tuned engine settings where it has none; they are not part of its identity."""
    settings = tuned.values["engine"]
    engine = Engine.model_validate({**settings, **job.declared.engine.model_dump(exclude_unset=True)})
    declared = job.declared.model_copy(update={"engine": engine})
    origins = {key: job.origins.get(key, tuned.origin) for key in flatten(declared.model_dump())}
    return dataclasses.replace(
        job, declared=declared, origins=origins, engine=add_settings(job.engine, settings)
    )


def select_rows(job: Job, template: str | None) -> Selection:
    """Return the job's selection of its input; `template` is the text of its prompt template."""
    # Kept, the column also shows in the output which adapter generated a sample.
    of_adapter = (job.lora.column,) if job.lora.column is not None else ()
    return Selection(
        prompt_column=job.input.prompt_column,
        messages_column=job.input.messages_column,
        turns_column=job.input.turns_column,
        system_column=job.input.system_column,
        id_column=job.input.id_column or (NUMBER if job.input.is_numbered else None),
        keep_columns=(*job.input.kept, *of_adapter),
        sampling_column=job.input.sampling_column,
        tools_column=job.input.tools_column,
        limit=job.input.limit,
        format=job.input.format,
        template=template,
        writes_messages=job.input.messages_template is not None,
        generate_role=job.input.generate_role,
        final_assistant=job.input.final_assistant,
        message_fields=job.input.message_fields,
        on_bad_row=job.input.on_bad_row,
        max_row_bytes=job.input.max_row_bytes,
        rename_columns=job.input.rename_columns,
    )


def _read_requests(merged: Merged, choices: int) -> Layer:
    """Return the layer of what the requests of a batch file want together: `choices` answers each.

    Raises:
        UsageError: The user wants another number.
    """
    if merged.is_explicit("num_samples") and merged.job.num_samples != choices:
        with merged.locate_errors("num_samples"):
            raise UsageError(
                f"-n/--num-samples {merged.job.num_samples}: the requests set n: {choices}; leave it out"
            )
    return Layer(origin="the requests", values={"num_samples": choices}, is_explicit=False)


def _name_copies(explicit: Job, resolved: ResolvedInput) -> Job:
    """Return `explicit` with stdin replaced by the saved copy: it cannot be read a second time."""
    if resolved.paths == explicit.input.paths:
        return explicit
    paths = resolved.paths[0] if isinstance(explicit.input.path, str) else resolved.paths
    return explicit.model_copy(update={"input": explicit.input.model_copy(update={"path": paths})})


def _resolve(sources: _Sources, cache: DigestCache) -> ResolvedJob:
    job, found, columns = sources.merged.job, sources.found, sources.columns.to_dict()
    prompt = choose_format(job, found)
    check_prompt_format(job, open_format(prompt))
    plan = sources.plan
    engine = specify_engine(sources.merged, found, prompt)
    if sources.columns.final == "continue":
        check_continued(engine)
    if sources.columns.logprobs:
        check_requested_logprobs(engine)
    numerics = find_numerics(engine, has_structures=bool(engine.structure or columns.get("sampling")))
    quantization = found.facts.quantization if found.facts else None
    identity = identify(
        IdentityParts(
            input=InputIdentity(
                digest=digest_files(sources.input.files), columns=columns, limit=job.input.limit
            ),
            plan=plan,
            prompt=prompt,
            engine=engine,
            model_digests=found.digests,
            numerics=numerics,
            on_overflow=job.on_overflow if plan.plays_turns else None,
            quantization=quantization.method if quantization else None,
            adapter_column=job.lora.column,
            flags=identify_flags(job),
            accept=identify_acceptance(sources.merged, plays_turns=plan.plays_turns),
        )
    )
    name = job.name or _name_after(sources.input.name)
    mark = fingerprint(identity)
    return ResolvedJob(
        name=name,
        declared=job,
        explicit=sources.explicit,
        inputs=sources.input.files,
        prompt_template=sources.template,
        columns=columns,
        output=find_directory(job) or Path("outputs") / f"{name}-{mark[:8]}",
        preset=sources.preset,
        quantization=str(quantization) if quantization else None,
        model=found.ref,
        plan=plan,
        prompt=prompt,
        engine=engine,
        adapter=choose_adapter(job),
        pool=PoolSpec(
            kind=job.pool.kind,
            workers=job.pool.workers,
            ray_address=job.pool.ray_address or None,
            watchdog_seconds=job.pool.watchdog_seconds,
            load_timeout_seconds=job.pool.load_timeout_seconds,
            engines_per_gpu=job.pool.engines_per_gpu if engine.device == "cuda" else 1,
        ),
        identity=identity,
        fingerprint=mark,
        origins=sources.merged.origins,
        tuning_place=describe_place(identity, numerics, engine),
        remote=_find_remote(job),
    )


def find_directory(job: Job) -> Path | None:
    """Return the run directory on this machine that the job names, or None."""
    return job.output if isinstance(job.output, Path) else job.store.state


def _find_remote(job: Job) -> Remote | None:
    if not isinstance(job.output, str):
        return None
    return Remote(
        url=job.output.rstrip("/"),
        lease_seconds=job.store.lease,
        request_seconds=job.store.request_timeout,
        patience_seconds=job.store.patience,
    )


def _name_after(stem: str) -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip("._-")
    return name.encode()[: LONGEST_NAME - MARK_LENGTH].decode(errors="ignore") or "job"
