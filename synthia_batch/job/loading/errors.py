"""Error messages for a job: every fault at once, each with its place and a remedy."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from synthia_batch.core.errors import SynthiaBatchError, UsageError
from synthia_batch.core.formatting import clip
from synthia_batch.job.dotted import drop_numbers, flatten, spell_key
from synthia_batch.job.keys import Key, list_kinds, suggest_key, walk_keys
from synthia_batch.job.loading.layer import Layer, Place, find_layer, walk_texts
from synthia_batch.job.loading.secrets import REFERENCE, SECRET_KEYS, is_secret_key, mask_value
from synthia_batch.job.loading.trust import OTHERS_FILE
from synthia_batch.job.sampling import REFUSED

_WORDS = {
    "model_type": "Input should be a section, with its keys indented under it",
    "dict_type": "Input should be a section, with its keys indented under it",
    "tuple_type": "Input should be a list, such as [a, b]",
    "string_type": "Input should be text",
    "path_type": "Input should be a path",
    "finite_number": "Input should be a finite number",
    "too_short": "Input should not be empty",
    "int_parsing": "Input should be a whole number",
    "int_type": "Input should be a whole number",
    "int_from_float": "Input should be a whole number",
    "float_parsing": "Input should be a number",
    "float_type": "Input should be a number",
    "bool_parsing": "Input should be true or false",
    "bool_type": "Input should be true or false",
}
"""Replacements for Pydantic's messages in terms of Python."""
_MENTION = re.compile(r"`[^`]*`|(?<![\w-])(?:-\w/)?--(?P<flag>[a-z][a-z-]*)(?: (?P<value>[\w.=]+))?")
"""A flag in a message, with the word behind it."""


def refuse_faults(faults: Sequence[str]) -> None:
    """Return if there are none. Raises UsageError otherwise."""
    if faults:
        lines = [f"  {fault}" for fault in sorted(faults, key=_order)]
        advice = "`synthia-batch run --help` lists the flags, `synthia-batch schema` the keys of a job file"
        raise UsageError("\n".join(["the job cannot be used:", *lines, advice]))


def explain_faults(
    exc: ValidationError, layers: Sequence[Layer], suggest: Callable[[str], str | None] = suggest_key
) -> list[str]:
    """Return a line for each value that does not fit the schema; `suggest` returns what a key may mean."""
    return [_explain(fault, layers, suggest) for fault in exc.errors()]


def explain_call(exc: ValidationError, values: Mapping[str, Any]) -> str:
    """Return the message for `values` that were passed to `Job` and do not fit it."""
    given = {key: value for key, value in values.items() if not isinstance(value, BaseModel)}
    layer = Layer(origin="argument", values=given)
    lines = [f"  {fault}" for fault in explain_faults(exc, [layer])]
    whole = "\n".join(["the job cannot be used:", *lines, "help(synthia_batch.Job) lists the fields"])
    return _name_fields(whole)


@contextmanager
def naming_fields() -> Iterator[None]:
    """Have the errors of a call from Python name fields of the job where they name flags of the command."""
    try:
        yield
    except SynthiaBatchError as exc:
        exc.args = tuple(map(_name_fields, exc.args))
        raise


def _name_fields(message: str) -> str:
    """Return a message with `determinism=fast` for `--determinism fast`, and `workers` for `--workers`.

    Whole commands, which are in backticks, stay.
    """
    return _MENTION.sub(_name_field, message)


def _name_field(mention: re.Match[str]) -> str:
    flag, value = mention["flag"], mention["value"]
    if flag == "set" and value:
        return value
    key = _key_of_flags().get(flag) if flag else None
    if key is None:
        return mention[0]
    if value and (value.isupper() or value.isdecimal() or value in list_kinds(key.field.annotation)):
        return f"{key.name}={value}"
    return f"{key.name} {value}" if value else key.name


@cache
def _key_of_flags() -> dict[str, Key]:
    """Return the keys that have a flag, by its name without dashes."""
    return {name: key for key in walk_keys() if (name := key.flag_name)}


def find_references(layers: Sequence[Layer]) -> list[str]:
    """Return a line for each reference to the environment in a key or a file that may not have one."""
    return [
        _place(key, layer.find_place(key), fault)
        for layer in layers
        for key, text in walk_texts(layer.values)
        if (found := REFERENCE.search(text)) and (fault := _refuse_reference(layer, key, found[0]))
    ]


def find_odd_values(layers: Sequence[Layer]) -> list[str]:
    """Return a line for each value that JSON in UTF-8, the format of identity and plan, cannot represent.

    Only the input's path may be any bytes: users do not choose the names of files they receive.
    """
    return [fault for layer in layers for fault in _list_odd(layer)]


def _list_odd(layer: Layer) -> Iterator[str]:
    try:
        for key, value in flatten(layer.values).items():
            fault = _find_odd(key) or (_find_odd(value) if key != "input.path" else None)
            if fault:
                yield _place(ascii(key)[1:-1], layer.find_place(key), fault)
    except RecursionError:
        yield f"{layer.origin}: a value holds itself"


def _find_odd(value: Any) -> str | None:
    """Return why JSON in UTF-8 cannot represent `value`, or None if it can."""
    if isinstance(value, str | Path):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            return f"{str(value)!r} is not valid UTF-8; type it again"
        return None
    if isinstance(value, Mapping):
        odd_key = next((f"the key {key!r} is not text" for key in value if not isinstance(key, str)), None)
        return odd_key or _find_odd([*value, *value.values()])
    if isinstance(value, list | tuple):
        return next((fault for entry in value if (fault := _find_odd(entry))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is not a finite number"
    if value is None or isinstance(value, bool | int | float):
        return None
    return (
        f"{str(value)!r} is a {type(value).__name__}, which JSON cannot represent; quote it to make it text"
    )


def _explain(fault: ErrorDetails, layers: Sequence[Layer], suggest: Callable[[str], str | None]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing" and fault["loc"][0] == "input":
        return f"{key}: not set; name an input file or a job file"
    layer = find_layer(key, layers) or find_layer(str(fault["loc"][0]), layers)
    place = layer.find_place(key) if layer else Place(origin="default")
    if fault["type"] == "missing":
        return _place(key, place, "not set, and has no default")
    if fault["type"] == "extra_forbidden":
        section, _, name = key.rpartition(".")
        if section == "sampling" and name in REFUSED:
            return _place(key, place, f"not supported in a job: {REFUSED[name]}", of_key=True)
        near = suggest(key)
        return _place(key, place, f"unknown key.{f' Did you mean {near!r}?' if near else ''}", of_key=True)
    if fault["input"] is None:
        return _place(key, place, "has no value; give it one, or remove the key")
    what = _WORDS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    listed = drop_numbers(key)
    shown = mask_value(listed, fault["input"])
    got = "" if is_secret_key(listed) else f", got {clip(repr(shown), 80)}"
    return _place(key, place, what + got)


def _place(key: str, place: Place, what: str, *, of_key: bool = False) -> str:
    at = place.at_key if of_key else place.at_value
    spelt = spell_key(key)
    return f"{at}: {spelt}: {what}" if at else f"{spelt} ({place.origin}): {what}"


def _refuse_reference(layer: Layer, key: str, reference: str) -> str | None:
    """Return why `layer` may not have `reference` in `key`, None if it may."""
    if is_secret_key(drop_numbers(key)):
        return None if layer.is_own else f"{reference} is not replaced: {OTHERS_FILE}"
    instead = (
        "put the text into a file and use @FILE" if key.startswith("system") else "write the value itself"
    )
    return (
        f"{reference} is replaced in secrets only ({', '.join(sorted(SECRET_KEYS))}), since a job's output "
        f"must not depend on the environment; {instead}"
    )


def _order(fault: str) -> tuple[str, int, int]:
    """Return the sort key of `fault`: those of a file come last, by line and column."""
    found = re.match(r"(.+?):(\d+):(\d+): ", fault)
    return (found[1], int(found[2]), int(found[3])) if found else ("", 0, 0)
