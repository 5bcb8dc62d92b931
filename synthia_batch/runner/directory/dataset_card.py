"""The dataset card of a run that is about to be complete."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synthia_batch.core.formatting import join_first
from synthia_batch.job.input_section import Sampler
from synthia_batch.job.presets import read_preset
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.job.sections import DEMO_MODEL
from synthia_batch.models.checkpoint import read_licence
from synthia_batch.results.report.card import CardFacts, Licence, write_card
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.storage.manifest import Manifest

MOST_NAMES = 8
"""Files that the command on a card names; of more it names these."""
_SAMPLING_FLAGS = ("temperature", "top_p", "top_k", "max_tokens")
_COLUMN_FLAGS = ("prompt", "messages", "turns", "system", "id")


def make_card(session: RunSession, manifest: Manifest) -> None:
    """Write the card of a run whose parts are all published. Same run, same bytes."""
    job = session.job
    facts = CardFacts(
        name=session.name,
        model=job.model.name,
        source=join_first(session.source_files, 1),
        command=shlex.join(_spell_command(job, session.source_files)),
        systems={system.name: system.text for system in job.plan.systems},
        identity=job.identity,
        licence=find_licence(job),
    )
    write_card(session.run_dir, facts, manifest)


def find_licence(job: ResolvedJob) -> Licence | None:
    """Return the licence of the job's model: its own card's word, else that of the preset made for it."""
    if job.model.path is not None:
        named = read_licence(job.model.path)
        if named is not None:
            return Licence(name=named, source="the model's own card")
    if job.preset is None:
        return None
    preset = read_preset(job.preset)
    known = preset.facts.get("licence")
    if known is None or known.value is None or not preset.knows(job.model.name):
        return None
    return Licence(name=str(known.value), source=preset.card or known.reason or f"preset {preset.name}")


def _spell_command(job: ResolvedJob, source_files: Sequence[str]) -> Iterator[str]:
    """Yield the words of a command that makes this job, but for where its files are."""
    identity = job.identity
    yield from ("synthia-batch", "run", *source_files[:MOST_NAMES])
    if len(source_files) > MOST_NAMES:
        yield "..."
    if job.model.path is not None or job.engine.is_elsewhere:
        is_demo = job.declared.model.name == DEMO_MODEL
        yield from ("--model", DEMO_MODEL if is_demo else job.model.name)
    if identity["engine"]["kind"] != "vllm":
        yield from ("--engine", identity["engine"]["kind"])
    if job.engine.is_elsewhere:  # Where it was is no part of the output.
        yield from ("--base-url", "URL")
    if job.explicit.model.max_model_len is not None:
        yield from ("--set", f"model.max_model_len={job.explicit.model.max_model_len}")
    columns = identity["input"]["columns"]
    if columns.get("shape") is not None:
        yield from ("--input-format", columns["shape"])
    if columns.get("generate_role") is not None:
        yield from ("--set", f"input.generate_role={columns['generate_role']}")
    elif columns.get("template") is not None:
        yield from ("--messages-template" if columns.get("writes_messages") else "--prompt-template", "FILE")
    for column in _COLUMN_FLAGS:
        if columns.get(column) is not None:
            yield from (f"--{column}-column", columns[column])
    drawn = job.declared.input.columns
    if drawn:
        yield from ("--set", f"input.columns={_spell_columns(drawn)}")
    if kept := [name for name in columns["keep"] if name not in drawn]:
        yield from ("--keep-columns", ",".join(kept))
    if identity["input"]["limit"] is not None:
        yield from ("--limit", str(identity["input"]["limit"]))
    if columns.get("system") is None:
        for name, _ in identity["system"]:
            yield from ("--system", name)
    yield from ("--num-samples", str(identity["num_samples"]), "--seed", str(identity["seed"]))
    yield from _spell_sampling(identity["sampling"])
    if "flags" in identity:
        yield from ("--flag", ",".join(identity["flags"]["names"]))
        yield from ["--drop-flagged"] * identity["flags"]["drop"]
    if identity["determinism"] != "strict":
        yield from ("--determinism", identity["determinism"])


def _spell_columns(drawn: Mapping[str, Sampler]) -> str:
    """Return the drawn columns as `--set` takes them, but for where their files are."""
    declared = {
        name: sampler.model_dump(mode="json", exclude_defaults=True) for name, sampler in drawn.items()
    }
    spelled = {name: {**said, "file": "FILE"} if "file" in said else said for name, said in declared.items()}
    return json.dumps(spelled, ensure_ascii=False)


def _spell_sampling(sampling: dict[str, Any]) -> Iterator[str]:
    # Settings that have a flag are always listed; of the others those that have an effect.
    neutral = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    for key, value in sampling.items():
        if key in _SAMPLING_FLAGS:
            yield from (f"--{key.replace('_', '-')}", str(value))
        elif key == "stop":
            for text in value:
                yield from ("--stop", text)
        elif value != neutral.get(key, object()):
            yield from ("--set", f"sampling.{key}={value}")
