"""From what was said to a job with no maybes: files are looked up, digested and asked here."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.digest import DigestCache, open_digest_cache
from synthia_batch.errors import UsageError
from synthia_batch.inputs import Columns, ResolvedInput, Selection, digest_files, open_files, resolve_inputs
from synthia_batch.job.identity import IdentityParts, InputIdentity, fingerprint, identify
from synthia_batch.job.loading.merge import Layer, Merged, merge_layers
from synthia_batch.job.loading.secrets import reveal
from synthia_batch.job.resolved import (
    PlanSpec,
    PoolSpec,
    Remote,
    ResolvedJob,
    SystemText,
)
from synthia_batch.job.schema import Job
from synthia_batch.models.prompts.system_messages import SystemMessage, select_system_message
from synthia_batch.models.prompts.tokenizer import open_format
from synthia_batch.results.quality.flags import identify_flags
from synthia_batch.runner.resolve.answers import check_tools
from synthia_batch.runner.resolve.engine_spec import find_numerics, specify_engine
from synthia_batch.runner.resolve.kept_columns import check_kept_columns
from synthia_batch.runner.resolve.model_selection import (
    FoundModel,
    add_preset,
    choose_adapter,
    choose_format,
    find_model,
)
from synthia_batch.runner.resolve.tuned import read_tuned
from synthia_batch.workers.openai import settings as openai_settings

_log = logging.getLogger(__name__)

SYSTEM_COLUMN = "column"
"""The name of a system message that comes from the row's system column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """All that a job is resolved from: what the user `said`, everything `merged`, what is there."""

    said: Job
    merged: Merged
    preset: str | None
    taken: ResolvedInput
    template: str | None
    columns: Columns
    found: FoundModel


def resolve_job(layers: Sequence[Layer], *, takes_tuned: bool = True) -> ResolvedJob:
    """Return the job that `layers`, strongest first, come to. Reads files; changes none but caches.

    With `takes_tuned`, what `tune` has found for its model and hardware is the weakest layer.

    Raises:
        UsageError: The job cannot be used as it was said.
        ModelUnavailable: Its model is not to be had.
    """
    cache = open_digest_cache()
    said = merge_layers(layers).job
    chosen = add_preset(layers)
    layers = chosen.layers
    merged = merge_layers(layers)
    _refuse_two_systems(merged)
    if said.engine.kind == "openai":
        openai_settings.check_job(merged)
        defaults = Layer(origin="the endpoint engine", values=openai_settings.DEFAULTS, is_explicit=False)
        layers = [*layers, defaults]
        merged = merge_layers(layers)
    for url in said.notify or ():
        reveal(url, os.environ, "notify")  # Missed in the evening, not in the morning.
    # Before the model, which may take an hour to download.
    template = _read_template(merged)
    taken = resolve_inputs(said.input.paths, cache)
    columns = open_files(taken.files).detect(select_rows(said, template))
    check_kept_columns(columns.keep, merged.job, taken.files[0].shown)
    _tell_columns(columns, taken)
    found = find_model(merged, chosen.preset, cache)
    _tell_model(columns, taken, found)
    if found.facts is not None and found.facts.generation:
        recommended = Layer(
            origin="the model's generation_config",
            values={"sampling": dict(found.facts.generation)},
            is_explicit=False,
        )
        layers = [*layers, recommended]
        merged = merge_layers(layers)
    preset = chosen.preset.name if chosen.preset else None
    sources = _Sources(
        said=_name_copies(said, taken),
        merged=merged,
        preset=preset,
        taken=taken,
        template=template,
        columns=columns,
        found=found,
    )
    job = _resolve(sources, cache)
    tuned = read_tuned(job.tuning_place) if takes_tuned else None
    if tuned is None:
        return job
    return _resolve(dataclasses.replace(sources, merged=merge_layers([*layers, tuned])), cache)


def select_rows(job: Job, template: str | None) -> Selection:
    """Return what the job asks of its input; `template` is the text of its prompt template."""
    said = job.input
    # Kept, the column also tells in the output which adapter made a sample.
    of_adapter = (job.lora.column,) if job.lora.column is not None else ()
    return Selection(
        prompt_column=said.prompt_column,
        messages_column=said.messages_column,
        turns_column=said.turns_column,
        system_column=said.system_column,
        id_column=said.id_column,
        keep_columns=(*said.keep_columns, *of_adapter),
        sampling_column=said.sampling_column,
        tools_column=said.tools_column,
        limit=said.limit,
        format=said.format,
        template=template,
    )


def _read_template(merged: Merged) -> str | None:
    """Return the text of the job's prompt template, if it has one."""
    path = merged.job.input.prompt_template
    if path is None:
        return None
    with merged.blame("input.prompt_template"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise UsageError(f"--prompt-template {path}: cannot be read: {why}; name a text file") from exc


def _name_copies(said: Job, taken: ResolvedInput) -> Job:
    """Return what was said, with stdin named as the copy that was kept of it: it is gone by the next time."""
    if taken.said == said.input.paths:
        return said
    paths = taken.said[0] if isinstance(said.input.path, str) else taken.said
    return said.model_copy(update={"input": said.input.model_copy(update={"path": paths})})


def _tell_model(columns: Columns, taken: ResolvedInput, found: FoundModel) -> None:
    """Say that another model answers than requests ask for: theirs may be one that nobody has here."""
    if columns.model is not None and columns.model not in (found.ref.name, found.ref.repo_id):
        _log.info(
            f"{taken.files[0].shown}: its requests name the model {columns.model!r}; "
            f"{found.ref.name!r} answers them (--model names another)"
        )


def _tell_columns(columns: Columns, taken: ResolvedInput) -> None:
    """Say what was found that nobody said, and changes what a model is asked."""
    first = taken.files[0].shown
    if columns.shape == "alpaca":
        _log.info(
            f"{first}: read as Alpaca: prompts are instruction and input (--input-format plain: one column)"
        )
    elif columns.shape == "sharegpt" and columns.turns is None:
        _log.info(
            f"{first}: read as ShareGPT: the last answer of each conversation is made again "
            f"(--turns-column {columns.messages}: every answer)"
        )


def _refuse_two_systems(merged: Merged) -> None:
    if merged.job.input.system_column and merged.is_explicit("system"):
        raise UsageError(
            "a system message was named, and a column to take it from as well (--system and "
            "--system-column); name one of the two"
        )


def _resolve(sources: _Sources, cache: DigestCache) -> ResolvedJob:
    job, found, columns = sources.merged.job, sources.found, sources.columns.to_dict()
    prompt = choose_format(job, found)
    if job.input.tools_column is not None:
        check_tools(open_format(prompt))
    plan = _choose_systems(sources.merged, sources.columns)
    engine = specify_engine(sources.merged, found, prompt)
    numerics = find_numerics(engine, has_structures=bool(engine.structure or columns.get("sampling")))
    quantization = found.facts.quantization if found.facts else None
    identity = identify(
        IdentityParts(
            input=InputIdentity(
                digest=digest_files(sources.taken.files, cache), columns=columns, limit=job.input.limit
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
        )
    )
    name = job.name or _name_after(sources.taken.name)
    mark = fingerprint(identity)
    return ResolvedJob(
        name=name,
        declared=job,
        said=sources.said,
        inputs=sources.taken.files,
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
        ),
        identity=identity,
        fingerprint=mark,
        origins=sources.merged.origins,
        tuning_place={
            "model": identity["model"],
            "engine": engine.kind,
            "version": numerics.version,
            "hardware": numerics.hardware,
            "determinism": engine.determinism,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "pipeline_parallel_size": engine.pipeline_parallel_size,
        },
        remote=_find_remote(job),
    )


def find_directory(job: Job) -> Path | None:
    """Return the run directory that the job names on this machine, or None where it names none."""
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


def _choose_systems(merged: Merged, columns: Columns) -> PlanSpec:
    job = merged.job
    # A prompt has no system message of its own, and a blank value of the column replaces none.
    replaces = not columns.brings_system or (not columns.system and merged.is_explicit("system"))
    if job.input.system_column:
        systems = [SystemText(name=SYSTEM_COLUMN, text="")]
    else:
        chosen = [_select_system(merged, number) for number in range(len(job.system))]
        systems = [SystemText(name=message.name, text=message.text) for message in chosen]
    names = [system.name for system in systems]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"--system: {', '.join(names) or 'none at all'}; name each system message once")
    return PlanSpec(
        systems=tuple(systems),
        system_column=job.input.system_column,
        replace_own_system=replaces,
        num_samples=job.num_samples,
        seed=job.seed,
        plays_turns=columns.turns is not None,
    )


def _select_system(merged: Merged, number: int) -> SystemMessage:
    is_list = len(merged.job.system) > 1
    with merged.blame(f"system.{number}" if is_list else "system"):
        return select_system_message(merged.job.system[number])


def _name_after(stem: str) -> str:
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem).lstrip("._-")
    return name or "job"
