"""A pipeline: a job file with `stages`, each a job or a selection of its own.

The keys beside `stages` are defaults of every stage that generates; those of `input`, only of a stage that
reads no other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from synthia_batch.core.errors import UsageError
from synthia_batch.job.dotted import merge_values
from synthia_batch.job.loading.errors import explain_faults, refuse_faults
from synthia_batch.job.loading.layer import Layer
from synthia_batch.job.loading.merge import merge_layers
from synthia_batch.job.select import NO_STEPS, Select, suggest_step

STAGES = "stages"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_RESERVED = ("id", "row", "self")
_PLACEHOLDER = {"input": {"path": "rows.jsonl"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage. `layer` has its keys; a stage that selects has `select` instead of those of a job.

    `reads` is the stage whose samples are its rows, None if it names a path. `at` is its place in the file.
    """

    name: str
    layer: Layer
    select: Select | None
    reads: str | None
    at: str

    def refuse(self, key: str, exc: UsageError | str) -> UsageError:
        """Return the error about the value of `key`, with its place in the file."""
        return UsageError(f"{self.layer.find_place(key).at_value or self.at}: {exc}")

    def complete(self, given: Mapping[str, Any]) -> Layer:
        """Return its layer with values for what it does not say."""
        return replace(self.layer, values=merge_values(given, self.layer.values))

    def declare(self, flags: Sequence[Layer] = ()) -> Any:
        """Return its job, with an input that stands for what it reads. Raises UsageError."""
        given = {} if self.reads is None else _PLACEHOLDER
        return merge_layers([*flags, self.complete(given)]).job


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The stages of a file, in order. `output` is its directory, None for the default.

    `report`: selections have a report, as runs do.
    """

    name: str
    stages: tuple[Stage, ...]
    output: str | None
    report: bool = True


def read_pipeline(whole: Layer, path: Path) -> Pipeline:
    """Return the pipeline of the job file at `path`, whose layer sets STAGES.

    Raises:
        UsageError: It cannot be run as it is; with file:line:col.
    """
    listed = whole.values[STAGES]
    if not isinstance(listed, list) or not listed:
        at = whole.find_place(STAGES).at_value
        raise UsageError(f"{at}: stages is a list of stages, each with a name, and is not empty")
    stages: list[Stage] = []
    for number, values in enumerate(listed):
        stages.append(_read_stage(whole, number, values, [stage.name for stage in stages]))
    output = whole.values.get("output")
    return Pipeline(
        name=str(whole.values.get("name") or path.stem),
        stages=tuple(stages),
        output=None if output is None else str(output),
        report=TypeAdapter(bool).validate_python(whole.values.get("report", True)),
    )


def _read_stage(whole: Layer, number: int, values: Any, known: list[str]) -> Stage:
    layer, at = _cut_layer(whole, number, values)
    name = values.get("name") if isinstance(values, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise UsageError(
            f"{at}: a stage needs a name of letters, digits and _, such as `name: judge`, for its samples"
        )
    if name in known:
        raise UsageError(f"{at}: two stages are named {name}; give each a name of its own")
    source = values.get("input") or {}
    if not isinstance(source, dict):
        raise _refuse(layer, "input", at, "input is a section: `input: {path: FILE}`")
    if "output" in values:
        raise _refuse(layer, "output", at, "a stage has no output of its own; set it beside stages, or -o")
    reads = source.get("stage")
    if reads is not None and reads not in known:
        there = ", ".join(known) or "none"
        what = f"input.stage: there is no stage {reads} before this one; there are {there}"
        raise _refuse(layer, "input.stage", at, what)
    for key, what in (("path", "a path"), ("rows", "rows")):
        if reads is not None and key in source:
            raise _refuse(layer, f"input.{key}", at, f"input names a stage and {what}; name one")
    has_own = "path" in source or "rows" in source
    if reads is None and not has_own and known:
        reads = known[-1]
    is_selection = "select" in values
    if is_selection:
        select = _read_selection(layer, at, known)
    own = {key: value for key, value in source.items() if key != "stage"}
    defaults = {key: value for key, value in whole.values.items() if key not in (STAGES, "name", "output")}
    inherited = {} if is_selection else {k: v for k, v in defaults.items() if k != "input" or reads is None}
    if has_own and isinstance(inherited.get("input"), Mapping):  # Of the two, its own is meant.
        inherited["input"] = {k: v for k, v in inherited["input"].items() if k not in ("path", "rows")}
    if not {"accept"} & {*inherited, *values}:
        inherited.pop("max_candidates", None)  # A default for the stages that accept.
    layer = replace(layer, values=merge_values(inherited, {**values, "input": own}))
    if reads is None and not is_selection and not {"path", "rows"} & {*layer.values["input"]}:
        raise UsageError(f"{at}: the first stage needs an input: `input: {{path: questions.jsonl}}`")
    stage = Stage(name=name, layer=layer, select=select if is_selection else None, reads=reads, at=at)
    if not is_selection:
        stage.declare()
    return stage


def _cut_layer(whole: Layer, number: int, values: Any) -> tuple[Layer, str]:
    """Return the layer of a stage alone, with the places of the defaults behind its own, and its place."""
    prefix = f"{STAGES}.{number}."
    places = {key: place for key, place in whole.places.items() if not key.startswith(f"{STAGES}.")}
    places |= {
        key.removeprefix(prefix): place for key, place in whole.places.items() if key.startswith(prefix)
    }
    at = whole.find_place(prefix.rstrip(".")).at_value or whole.origin
    own = values if isinstance(values, dict) else {}
    return replace(whole, values=own, places=places, faults=whole.faults if number == 0 else ()), at


def _read_selection(layer: Layer, at: str, known: list[str]) -> Select:
    source = layer.values.get("input") or {}
    if not known or "path" in source:
        raise _refuse(layer, "input", at, "a stage that selects reads a stage before it, not a path")
    others = [key for key in layer.values if key not in ("name", "input", "select")]
    others += [f"input.{key}" for key in source if key != "stage"]
    if others:
        what = f"a stage that selects generates nothing: it has no {others[0]}"
        raise UsageError(f"{layer.find_place(others[0]).at_key or at}: {what}")
    steps = layer.values["select"] or {}
    if not isinstance(steps, dict):
        raise _refuse(layer, "select", at, "select is a section: `select: {where: EXPRESSION}`")
    try:
        select = Select.model_validate(steps)
    except ValidationError as exc:
        first = exc.errors()[0]
        if not first["loc"]:
            raise _refuse(layer, "select", at, first["msg"].partition(", ")[2]) from exc
        places = {key.removeprefix("select."): place for key, place in layer.places.items()}
        refuse_faults(explain_faults(exc, [replace(layer, values=steps, places=places)], suggest_step))
        raise
    if not select.identify():
        raise _refuse(layer, "select", at, NO_STEPS)
    return select


def _refuse(layer: Layer, key: str, at: str, what: str) -> UsageError:
    return UsageError(f"{layer.find_place(key).at_value or at}: {what}")
