"""Who said what: the layers that a job is merged from, and where each value came from.

A layer is a nested dict in the shape of a job file. The first layer that says something wins:

    flag > environment > job file > preset > the model's generation_config > default
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from synthia_batch.errors import UsageError
from synthia_batch.job.declared import Job
from synthia_batch.job.dotted import flatten, merge_values, nest

ENVIRONMENT_PREFIX = "SYNTHIA_BATCH_"
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one place says about the job. `origin` is how `plan` names that place."""

    origin: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A job with every value filled, and for each dotted key the origin of its value."""

    job: Job
    origins: Mapping[str, str]


def merge_layers(layers: Sequence[Layer]) -> Merged:
    """Return the job that `layers` give together, the first of them being the strongest.

    Raises:
        UsageError: A key is unknown or a value does not fit; every such fault is named.
    """
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        values = merge_values(values, layer.values)
    try:
        job = Job.model_validate(values)
    except ValidationError as exc:
        raise UsageError(_explain(exc, layers)) from exc
    origins = {key: _find_origin(key, layers) for key in flatten(job.model_dump())}
    return Merged(job=job, origins=origins)


def read_job_file(path: Path) -> Layer:
    """Return the layer that a job file gives, its input and output paths relative to the file.

    Raises:
        UsageError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else "?"
        raise UsageError(f"{path}:{line}: not valid YAML: {exc.problem}; mend it and run again") from exc
    except (YAMLError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path}: not valid YAML in UTF-8: {exc}; mend it and run again") from exc
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}; name an existing job file") from exc
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a job file is a mapping of keys to values; see jobs/quickstart.yaml")
    _anchor_paths(values, path.parent)
    return Layer(origin=f"job file {path}", values=values)


def read_environment(environment: Mapping[str, str]) -> Layer:
    """Return the layer that variables such as SYNTHIA_BATCH_SAMPLING__TOP_P=0.9 give.

    The name is a dotted key in capitals, with two underscores for each dot; the value is YAML.
    """
    values: dict[str, Any] = {}
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            values = merge_values(values, nest(key, parse_value(environment[name], name)))
    return Layer(origin="environment", values=values)


def parse_assignment(text: str) -> dict[str, Any]:
    """Return the nested dict that `--set key=value` says; the value is YAML.

    Raises:
        UsageError: There is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r}: write it as key=value, such as --set sampling.min_p=0.05")
    return nest(key.strip(), parse_value(value, f"--set {key.strip()}"))


def parse_value(text: str, where: str) -> Any:
    """Return the YAML value of `text`: 20 is a number, true a boolean, [a, b] a list."""
    try:
        return YAML(typ="safe").load(StringIO(text))
    except YAMLError as exc:
        raise UsageError(f"{where}: {text!r} is not a YAML value; quote it, as in '\"{text}\"'") from exc


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    section = values.get("input")
    if isinstance(section, dict) and isinstance(section.get("path"), str):
        section["path"] = os.path.normpath(folder / section["path"])
    if isinstance(values.get("output"), str):
        values["output"] = os.path.normpath(folder / values["output"])
    system = values.get("system")
    if isinstance(system, list):
        values["system"] = [_anchor_file(spec, folder) for spec in system]
    elif isinstance(system, str):
        values["system"] = _anchor_file(system, folder)


def _anchor_file(spec: Any, folder: Path) -> Any:
    if isinstance(spec, str) and spec.startswith("@"):
        return "@" + os.path.normpath(folder / spec[1:])
    return spec


def _find_origin(key: str, layers: Sequence[Layer]) -> str:
    for layer in layers:
        value: Any = layer.values
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            return layer.origin
    return "default"


def _explain(exc: ValidationError, layers: Sequence[Layer]) -> str:
    lines = ["the job cannot be used:"]
    for fault in exc.errors():
        key = ".".join(str(part) for part in fault["loc"])
        origin = _find_origin(".".join(str(part) for part in fault["loc"] if isinstance(part, str)), layers)
        if fault["type"] == "extra_forbidden":
            lines.append(f"  {key} ({origin}): there is no such key{_suggest(key)}")
        elif fault["type"] == "missing":
            lines.append(f"  {key}: not said; name an input file or a job file")
        else:
            lines.append(f"  {key} ({origin}): {fault['msg']}, got {fault['input']!r}")
    lines.append("`synthia-batch run --help` lists the flags; jobs/quickstart.yaml shows a job file")
    return "\n".join(lines)


def _suggest(key: str) -> str:
    near = difflib.get_close_matches(key, _known_keys(), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _known_keys() -> list[str]:
    return [*Job.model_fields, *flatten(Job(input={"path": "-"}).model_dump())]  # type: ignore[arg-type]
