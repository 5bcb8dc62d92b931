"""Who said what: the layers that a job is merged from, and where each value came from.

A layer is a nested dict in the shape of a job file. The first layer that says something wins:

    flag > environment > job file > preset > the model's generation_config > tuned > default
"""

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from synthia_batch.errors import UsageError
from synthia_batch.job.declared import Job, Model
from synthia_batch.job.dotted import flatten, merge_values, nest

ENVIRONMENT_PREFIX = "SYNTHIA_BATCH_"
_ABSENT = object()
ENGINE_PATHS = ("call_log", "fail_while_missing", "hang_load_once")
"""The settings of the scripted engine that are paths."""
_PATHS = (
    ("input", "path"),
    ("", "output"),
    ("", "chat_template"),
    *(("engine", key) for key in ENGINE_PATHS),
)
"""The keys, section and name, that hold a path; in a job file it is relative to that file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one place says about the job. `origin` is how `plan` names that place.

    `is_said` is False where nobody said it: a preset's values, what the model recommends, what
    `tune` has found.
    """

    origin: str
    values: Mapping[str, Any]
    is_said: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A job with every value filled, and for each dotted key the origin of its value.

    `said` are the keys whose value the user said.
    """

    job: Job
    origins: Mapping[str, str]
    said: frozenset[str]

    def is_said(self, key: str) -> bool:
        """Whether the user said the value of `key`: no preset, no model and no default did."""
        return key in self.said


def merge_layers(layers: Sequence[Layer]) -> Merged:
    """Return the job that `layers` give together, the first of them being the strongest.

    Raises:
        UsageError: A key is unknown or a value does not fit; every such fault is named.
    """
    _refuse_odd_values(layers)
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        values = merge_values(values, layer.values)
    try:
        job = Job.model_validate(values)
    except ValidationError as exc:
        raise UsageError(_explain(exc, layers)) from exc
    sources = {key: _find_layer(key, layers) for key in flatten(job.model_dump())}
    return Merged(
        job=job,
        origins={key: layer.origin if layer else "default" for key, layer in sources.items()},
        said=frozenset(key for key, layer in sources.items() if layer and layer.is_said),
    )


def read_job_file(path: Path) -> Layer:
    """Return the layer that a job file gives, its relative paths being relative to the file.

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

    The name is a dotted key in capitals, with two underscores for each dot; the value is YAML, or
    text as for parse_assignment. Ray's own RAY_ADDRESS says pool.ray_address.
    """
    values = dict(read_ray_address(environment).values)
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            values = merge_values(values, nest(key, parse_value(environment[name], name, key)))
    return Layer(origin="environment", values=values)


def read_ray_address(environment: Mapping[str, str]) -> Layer:
    """Return the layer that the variable every Ray program heeds, RAY_ADDRESS, gives."""
    address = environment.get("RAY_ADDRESS")
    return Layer(origin="environment", values={"pool": {"ray_address": address}} if address else {})


def parse_assignment(text: str) -> dict[str, Any]:
    """Return the nested dict that `--set key=value` says; the value is YAML.

    Where the key wants text, what YAML would take for a number, a date or a mapping is text:
    `--set model.revision=1234`.

    Raises:
        UsageError: There is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r}: write it as key=value, such as --set sampling.min_p=0.05")
    key = key.strip()
    return nest(key, parse_value(value, f"--set {key}", key))


def parse_value(text: str, where: str, key: str) -> Any:
    """Return the YAML value of `text`: 20 is a number, true a boolean, [a, b] a list.

    @FILE is text, though YAML keeps the sign for itself. So is anything else but null and a list
    where `key` wants text.
    """
    if text.startswith("@"):
        return text
    try:
        value = YAML(typ="safe").load(StringIO(text))
        is_text = value is None or isinstance(value, str | list) or not _wants_text(key)
        return value if is_text else text
    except (YAMLError, ValueError, RecursionError) as exc:
        raise UsageError(f"{where}: {text!r} is not a YAML value; quote it, as in '\"{text}\"'") from exc


def _wants_text(key: str) -> bool:
    """Whether the value of the dotted `key` is one string, or strings."""
    section: Any = Job
    for part in key.split("."):
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return False
        section = field.annotation
    kinds = {section, *get_args(section)}
    return str in kinds or any(get_origin(kind) is Annotated and get_args(kind)[0] is str for kind in kinds)


def _refuse_odd_values(layers: Sequence[Layer]) -> None:
    """Return if JSON in UTF-8 can say every value: identity, plan and kept job are written in it.

    The input's path alone may be any bytes: nobody chooses the names of the files that they get.
    """
    faults = []
    for layer in layers:
        try:
            for key, value in flatten(layer.values).items():
                fault = _find_odd(key) or (_find_odd(value) if key != "input.path" else None)
                if fault:
                    faults.append(f"  {ascii(key)[1:-1]} ({layer.origin}): {fault}")
        except RecursionError:
            faults.append(f"  {layer.origin}: a value holds itself")
    if faults:
        raise UsageError("\n".join(["the job cannot be used:", *faults]))


def _find_odd(value: Any) -> str | None:
    """Return why JSON in UTF-8 cannot say `value`, or None if it can."""
    if isinstance(value, str | Path):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            return f"{str(value)!r} is not valid UTF-8; type it anew"
        return None
    if isinstance(value, Mapping):
        odd_key = next((f"the key {key!r} is no text" for key in value if not isinstance(key, str)), None)
        return odd_key or _find_odd([*value, *value.values()])
    if isinstance(value, list | tuple):
        return next((fault for entry in value if (fault := _find_odd(entry))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is no finite number"
    if value is None or isinstance(value, bool | int | float):
        return None
    return f"{str(value)!r} is a {type(value).__name__}, which JSON cannot say; quote it to make it text"


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    for name, key in _PATHS:
        section = values.get(name) if name else values
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = _anchor(section[key], folder)
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("name"), str):
        model["name"] = _anchor_model(model["name"], folder)
    lora = values.get("lora")
    if isinstance(lora, dict) and isinstance(lora.get("adapters"), dict):
        lora["adapters"] = {
            name: _anchor(path, folder) if isinstance(path, str) else path
            for name, path in lora["adapters"].items()
        }
    system = values.get("system")
    if isinstance(system, list):
        values["system"] = [_anchor_file(spec, folder) for spec in system]
    elif isinstance(system, str):
        values["system"] = _anchor_file(system, folder)


def _anchor(path: str, folder: Path) -> str:
    return os.path.normpath(folder / os.path.expanduser(path))


def _anchor_file(spec: Any, folder: Path) -> Any:
    if isinstance(spec, str) and spec.startswith("@"):
        return "@" + _anchor(spec[1:], folder)
    return spec


def _anchor_model(name: str, folder: Path) -> str:
    """Return the directory or file that `name` is beside the job file, or the name as it is.

    A name such as `./mine` can be nothing but a path; `org/mine` may be one on the Hub.
    """
    if name == Model.model_fields["name"].default:
        return name
    anchored = _anchor(name, folder)
    is_path = name in (".", "..") or name.startswith(("./", "../"))
    return os.path.abspath(anchored) if is_path or os.path.exists(anchored) else name


def _find_layer(key: str, layers: Sequence[Layer]) -> Layer | None:
    for layer in layers:
        value: Any = layer.values
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            return layer
    return None


def _explain(exc: ValidationError, layers: Sequence[Layer]) -> str:
    lines = ["the job cannot be used:"]
    for fault in exc.errors():
        key = ".".join(str(part) for part in fault["loc"])
        layer = _find_layer(".".join(part for part in fault["loc"] if isinstance(part, str)), layers)
        origin = layer.origin if layer else "default"
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
