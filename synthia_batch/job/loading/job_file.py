"""Reads a job file: a layer whose relative paths are relative to the file."""

import os
import re
from pathlib import Path
from typing import Any

from synthia_batch.errors import UsageError
from synthia_batch.job.fields import Section
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.loading.yaml_positions import read_marked
from synthia_batch.job.schema import Job, Model

MOST_BYTES = 1_000_000
"""A larger file is data that was taken for a job file."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
"""How an input begins that is not on this machine."""
STDIN = "-"
ENGINE_PATHS = ("call_log", "fail_while_missing", "hang_load_once")
"""The settings of the scripted engine that are paths."""
_PATHS = (
    ("input", "prompt_template"),
    ("", "output"),
    ("store", "state"),
    ("", "chat_template"),
    ("structured", "json_schema"),
    ("structured", "grammar"),
    *(("engine", key) for key in ENGINE_PATHS),
)
"""The keys, section and name, that hold a path; in a job file it is relative to that file."""


def read_job_file(path: Path) -> Layer:
    """Return the layer that a job file gives, its relative paths being relative to the file.

    Faults of single keys are in the layer, for `merge_layers` to tell with all others.

    Raises:
        UsageError: The file cannot be read, is not YAML, or is not a mapping.
    """
    marked = read_marked(_read_text(path), str(path))
    values = {key: value for key, value in marked.values.items() if value is not None or not _is_section(key)}
    _anchor_paths(values, path.parent)
    return Layer(origin=f"job file {path}", values=values, places=marked.places, faults=marked.faults)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(
                f"{path}: {path.stat().st_size:,} bytes are no job file; an input ends in .jsonl or .parquet"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: not UTF-8 at byte {exc.start}; save it as UTF-8 and run again") from exc
    except OSError as exc:
        raise UsageError(
            f"{path}: cannot be read: {exc.strerror}; name an existing job file, or write one with "
            "`synthia-batch init INPUT -o FILE`"
        ) from exc


def _is_section(key: str) -> bool:
    """Whether `key` heads a section: one with all its lines commented out says nothing."""
    field = Job.model_fields.get(key)
    kind = field.annotation if field else None
    return isinstance(kind, type) and issubclass(kind, Section)


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    for name, key in _PATHS:
        section = values.get(name) if name else values
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = _anchor(section[key], folder)
    given = values.get("input")
    if isinstance(given, dict) and "path" in given:
        given["path"] = _anchor_input(given["path"], folder)
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
    if "://" in path:
        return path
    return os.path.normpath(folder / os.path.expanduser(path))


def _anchor_input(path: Any, folder: Path) -> Any:
    if isinstance(path, list):
        return [_anchor_input(entry, folder) for entry in path]
    is_file = isinstance(path, str) and path not in ("", STDIN) and not ADDRESS.match(path)
    return _anchor(path, folder) if is_file else path


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
