"""Merge the layers of a job, and record where each value came from.

A layer is a nested dict in the shape of a job file. The first layer that sets a key wins:

    flag > environment > job file > preset > the model's generation_config > tuned > default
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from synthia_batch.core.errors import UsageError
from synthia_batch.job.dotted import flatten, merge_values, nest
from synthia_batch.job.keys import wants_text
from synthia_batch.job.loading.errors import explain_faults, find_odd_values, find_references, refuse_faults
from synthia_batch.job.loading.layer import Layer, Place, find_layer
from synthia_batch.job.loading.secrets import mask_value
from synthia_batch.job.schema import Job

__all__ = ["Layer", "Merged", "merge_layers", "parse_assignment", "read_environment", "read_ray_address"]
ENVIRONMENT_PREFIX = "SYNTHIA_BATCH_"
_INPUTS = ("path", "rows")
"""The keys of `input` of which each names the input, so that one overrides the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A job with every value filled, and for each dotted key the origin of its value.

    `explicit_keys` are those that the user set; `layers` are all that were merged.
    """

    job: Job
    origins: Mapping[str, str]
    explicit_keys: frozenset[str]
    layers: tuple[Layer, ...] = ()

    def is_explicit(self, key: str) -> bool:
        """Whether the user set `key`: its value is not a preset's, the model's or a default."""
        return key in self.explicit_keys

    @contextmanager
    def locate_errors(self, key: str) -> Iterator[None]:
        """Add to a UsageError of the block the place in a job file of the value of `key`, in which list
        entries have numbers.
        """
        try:
            yield
        except UsageError as exc:
            layer = find_layer(key, self.layers)
            at = layer.find_place(key).at_value if layer else ""
            if not at:
                raise
            raise UsageError(f"{at}: {exc}") from exc


def merge_layers(layers: Sequence[Layer]) -> Merged:
    """Return the merged job of `layers`, the strongest first.

    Raises:
        UsageError: A key is unknown or a value does not fit; lists every such fault.
    """
    layers = _drop_other_inputs(layers)
    # Values that JSON cannot represent would fail before validation.
    refuse_faults(find_odd_values(layers))
    faults = [*(fault for layer in layers for fault in layer.faults), *find_references(layers)]
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        values = merge_values(values, layer.values)
    try:
        job = Job.model_validate(values)
    except ValidationError as exc:
        refuse_faults([*faults, *explain_faults(exc, layers)])
        raise
    refuse_faults(faults)
    sources = {key: find_layer(key, layers) for key in flatten(job.model_dump())}
    return Merged(
        job=job,
        origins={key: layer.find_place(key).origin if layer else "default" for key, layer in sources.items()},
        explicit_keys=frozenset(key for key, layer in sources.items() if layer and layer.is_explicit),
        layers=tuple(layers),
    )


def _drop_other_inputs(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers, of which only the strongest one that names an input does."""
    kept: list[Layer] = []
    is_named = False
    for layer in layers:
        declared = layer.values.get("input")
        if isinstance(declared, Mapping):
            named = {key for key in _INPUTS if declared.get(key) is not None}
            if is_named and named:
                others = {key: value for key, value in declared.items() if key not in _INPUTS}
                kept.append(replace(layer, values={**layer.values, "input": others}))
                continue
            is_named = is_named or bool(named)
        kept.append(layer)
    return kept


def read_environment(environment: Mapping[str, str]) -> Layer:
    """Return the layer of variables such as SYNTHIA_BATCH_SAMPLING__TOP_P=0.9.

    The name is a dotted key in capitals, with two underscores for each dot; the value is YAML, or
    text as for parse_assignment. Ray's own RAY_ADDRESS sets pool.ray_address.
    """
    ray = read_ray_address(environment)
    values, places = dict(ray.values), dict(ray.places)
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            values = merge_values(values, nest(key, parse_value(environment[name], name, key)))
            places[key] = Place(origin=f"environment {name}")
    return Layer(origin="environment", values=values, places=places)


def read_ray_address(environment: Mapping[str, str]) -> Layer:
    """Return the layer of RAY_ADDRESS, the variable that every Ray program reads."""
    address = environment.get("RAY_ADDRESS")
    values = {"pool": {"ray_address": address}} if address else {}
    places = {"pool.ray_address": Place(origin="environment RAY_ADDRESS")}
    return Layer(origin="environment", values=values, places=places)


def parse_assignment(text: str) -> dict[str, Any]:
    """Return the nested dict of `--set key=value`; the value is YAML.

    For a key that takes text, a YAML number, date or mapping is text as well:
    `--set model.revision=1234`.

    Raises:
        UsageError: There is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r}: write it as key=value, such as --set sampling.min_p=0.05")
    key = key.strip()
    return nest(key, parse_value(value, f"--set {key}", key))


def _name_entries(value: Any) -> Any:
    """Return a mapping with its keys as text, as in a job file: `{123: -100}` names a token."""
    if not isinstance(value, dict):
        return value
    return {str(key) if type(key) is int else key: entry for key, entry in value.items()}


def parse_value(text: str, where: str, key: str) -> Any:
    """Return the YAML value of `text`: 20 is a number, true a boolean, [a, b] a list.

    @FILE is text, although YAML reserves the sign. So is any value but null and a list if `key` takes
    text.
    """
    if text.startswith("@"):
        return text
    try:
        value = YAML(typ="safe").load(StringIO(text))
        is_text = value is None or isinstance(value, str | list) or not wants_text(key)
        return _name_entries(value) if is_text else text
    except (YAMLError, ValueError, RecursionError) as exc:
        shown = mask_value(key, text)
        raise UsageError(f"{where}: {shown!r} is not a YAML value; quote it, as in '\"{shown}\"'") from exc
