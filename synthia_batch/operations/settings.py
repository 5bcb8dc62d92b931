"""The settings of a job with their origins, and what they are resolved to."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.job.dotted import flatten
from synthia_batch.job.loading.secrets import mask_value
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.resolve import find_directory


def list_settings(job: ResolvedJob) -> dict[str, dict[str, Any]]:
    """Return every key of the job with its value and origin, and the value it was resolved to."""
    settings: dict[str, dict[str, Any]] = {}
    resolutions = _find_resolutions(job)
    for key, value in flatten(job.declared.model_dump()).items():
        shown = mask_value(key, to_printable(value))
        settings[key] = {"value": shown, "origin": job.origins.get(key, "default")}
        resolution = resolutions.get(key)
        if resolution is not None and resolution.value != shown:
            settings[key] |= {"resolved": resolution.value, "resolved_by": resolution.by}
    return settings


@dataclass(frozen=True, slots=True)
class _Resolution:
    value: Any
    by: str


def _find_resolutions(job: ResolvedJob) -> dict[str, _Resolution]:
    has_model, is_elsewhere = job.model.path is not None, job.engine.is_elsewhere
    model = (
        "the server"
        if is_elsewhere
        else "the model's config.json"
        if has_model
        else "the preset"
        if job.lacks_model
        else "the scripted engine"
    )
    format_by = "the model's chat template" if job.prompt.format == "chat" else "no chat template"
    preset_by = "the model's name" if job.preset else "no model"
    found = {
        "name": _Resolution(job.name, "the input's name"),
        "output": _Resolution(to_printable(job.output), "name and fingerprint"),
        "preset": _Resolution(job.preset, preset_by),
        "model.quantization": _Resolution(job.quantization or job.engine.quantization, "the checkpoint"),
        "model.name": _Resolution(job.model.name, "the model" if has_model else model),
        "model.revision": _Resolution(job.model.revision, "the Hub"),
        "model.max_model_len": _Resolution(job.engine.max_model_len, model),
        "prompt_format": _Resolution(job.prompt.format, format_by),
        "system": _Resolution([system.name for system in job.plan.systems], "the library, files and rows"),
        "engine.device": _Resolution(job.engine.device, "the installed vLLM"),
        "sampling.stop": _Resolution(list(job.engine.sampling.stop), "the prompt format"),
        "input.digest": _Resolution(job.identity["input"]["digest"], "the input"),
        "input.prompt_column": _Resolution(job.columns["prompt"], "the input"),
        "input.messages_column": _Resolution(job.columns["messages"], "the input"),
        "input.turns_column": _Resolution(job.columns.get("turns"), "the input"),
        "input.keep_columns": _Resolution(job.columns["keep"], "the input"),
    }
    if job.lacks_model and find_directory(job.declared) is None:
        del found["output"]
    if is_elsewhere:
        writer = "the server writes prompts" if job.engine.takes_messages else "written here"
        found["prompt_format"] = _Resolution(job.prompt.format, writer)
        del found["engine.device"], found["model.max_model_len"]
    if job.pool.kind == "local":  # Only Ray knows the size of a Ray pool.
        found["pool.workers"] = _Resolution(job.pool.workers or 1, "the local pool")
    return found


def to_printable(value: Any) -> Any:
    """Return `value` in a form that JSON and a terminal can show: a path need not be valid UTF-8."""
    if isinstance(value, str | Path):
        return os.fsencode(value).decode(errors="backslashreplace")
    return [to_printable(entry) for entry in value] if isinstance(value, list | tuple) else value
