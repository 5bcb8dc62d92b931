"""Read a pipeline: a job file with `stages`, each a job or a selection of its own.

The keys beside `stages` are defaults of every stage that generates.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from synthia_batch.errors import UsageError
from synthia_batch.job.dotted import merge_values
from synthia_batch.job.loading.errors import explain_faults, refuse_faults
from synthia_batch.job.loading.job_file import read_job_file
from synthia_batch.job.loading.layer import Layer, Place
from synthia_batch.job.loading.merge import merge_layers
from synthia_batch.job.select import Select

STAGES = "stages"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("id", "row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage. `layer` has its keys; a stage that selects has `select` instead of those of a job.

    `reads` is the stage whose samples are its rows, None if it names a path.
    """

    name: str
    layer: Layer
    select: Select | None
    reads: str | None

    def refuse(self, key: str, exc: UsageError) -> UsageError:
        """Return the error about the value of `key`, with its place in the file."""
        return UsageError(f"{self.layer.find_place(key).at_value or self.layer.origin}: {exc}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The stages of a file, in order. `output` is its directory, None for the default."""

    name: str
    stages: tuple[Stage, ...]
    output: str | None


def read_pipeline(path: Path) -> Pipeline | None:
    """Return the pipeline in the file at `path`, None if it is a single job.

    Raises:
        UsageError: The file cannot be read, or is no pipeline that can be run; with file:line:col.
    """
    whole = read_job_file(path, allows_stages=True)
    if STAGES not in whole.values:
        return None
    listed = whole.values[STAGES]
    if not isinstance(listed, list) or not listed:
        at = whole.find_place(STAGES).at_value
        raise UsageError(f"{at}: stages is a list of stages, each with a name, and is not empty")
    defaults = {key: value for key, value in whole.values.items() if key not in (STAGES, "name", "output")}
    stages: list[Stage] = []
    for number, values in enumerate(listed):
        stages.append(_read_stage(whole, number, values, defaults, stages, path.parent))
    output = whole.values.get("output")
    return Pipeline(
        name=str(whole.values.get("name") or path.stem),
        stages=tuple(stages),
        output=None if output is None else str(output),
    )


def _read_stage(
    whole: Layer,
    number: int,
    values: Any,
    defaults: Mapping[str, Any],
    before: list[Stage],
    folder: Path,
) -> Stage:
    prefix = f"{STAGES}.{number}."
    places = {key: place for key, place in whole.places.items() if not key.startswith(f"{STAGES}.")}
    places |= {
        key.removeprefix(prefix): place for key, place in whole.places.items() if key.startswith(prefix)
    }
    at = whole.find_place(prefix.rstrip(".")).at_value or whole.origin
    name = values.get("name") if isinstance(values, dict) else None
    known = [stage.name for stage in before]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise UsageError(f"{at}: a stage needs a name of letters, digits and _, such as `name: judge`")
    if name in known:
        raise UsageError(f"{at}: two stages are named {name}; give each a name of its own")
    source = values.get("input") or {}
    reads = source.get("stage") if isinstance(source, dict) else None
    if reads is not None and reads not in known:
        raise UsageError(
            f"{places.get('input.stage', Place(origin='', at_value=at)).at_value}: input.stage: there is no "
            f"stage {reads} before this one; there are {', '.join(known) or 'none'}"
        )
    has_path = isinstance(source, dict) and "path" in source
    if reads is None and not has_path and before:
        reads = known[-1]
    values = {**values, "input": {key: value for key, value in source.items() if key != "stage"}}
    layer = replace(whole, values=values, places=places, faults=() if before else whole.faults)
    if "select" in values:
        return _read_selection(name, layer, reads, at)
    if reads is None and not has_path and "path" not in (defaults.get("input") or {}):
        raise UsageError(f"{at}: the first stage needs an input: `input: {{path: questions.jsonl}}`")
    inherited = {key: value for key, value in defaults.items() if key != "input" or reads is None}
    layer = replace(layer, values=merge_values(inherited, values))
    with_input = {"input": {"path": str(folder)}} if reads is not None else {}
    merge_layers([replace(layer, values=merge_values(with_input, layer.values))])
    return Stage(name=name, layer=layer, select=None, reads=reads)


def _read_selection(name: str, layer: Layer, reads: str | None, at: str) -> Stage:
    if reads is None:
        raise UsageError(f"{at}: a stage that selects needs a stage before it")
    others = [key for key in layer.values if key not in ("name", "input", "select")]
    if others:
        place = layer.find_place(others[0]).at_key or at
        raise UsageError(
            f"{place}: a stage that selects generates nothing and has no {others[0]}; leave it out"
        )
    try:
        select = Select.model_validate(layer.values["select"] or {})
    except ValidationError as exc:
        nested = replace(
            layer,
            values=layer.values["select"],
            places={key.removeprefix("select."): place for key, place in layer.places.items()},
        )
        refuse_faults(explain_faults(exc, [nested]))
        raise
    if not select.identify():
        raise UsageError(f"{at}: nothing is selected: set where, best, dedup, limit or sample")
    return Stage(name=name, layer=layer, select=select, reads=reads)
