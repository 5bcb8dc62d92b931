"""The keys of a job, found by walking its schema: their types, markers and nearest spellings."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from synthia_batch.job.engine_settings import ENGINE_SETTINGS
from synthia_batch.job.fields import Section
from synthia_batch.job.markers import Anchored, Flag, IdentityClass, Outward
from synthia_batch.job.schema import Job
from synthia_batch.job.sections import Engine
from synthia_batch.job.select import Decontaminate

ANY_NAME = "*"
"""In the name of a key, what the user has named a section of a table by."""
Marker = TypeVar("Marker", Anchored, Flag, IdentityClass, Outward)


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a job by its dotted name. `is_declared` is False for a setting of one kind of engine."""

    name: str
    field: FieldInfo
    is_declared: bool = True

    def find(self, kind: type[Marker]) -> Marker | None:
        """Return the key's marker of `kind`, or None."""
        return next(_find_markers(self.field.metadata, self.field.annotation, kind), None)

    @property
    def flag_name(self) -> str | None:
        """The name of its flag, without dashes; None if it has none."""
        flag = self.find(Flag)
        return None if flag is None else flag.name or self.name.rpartition(".")[2].replace("_", "-")


@cache
def walk_keys() -> tuple[Key, ...]:
    """Return every key of a job in the order of the schema, the engines' declared settings included."""
    return tuple(_walk(Job, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in section.model_fields.items():
        if is_section(field):
            yield from _walk(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        yield Key(f"{prefix}{name}", field)
        if get_origin(field.annotation) is dict and is_kind(get_args(field.annotation)[1], Section):
            yield from _walk(get_args(field.annotation)[1], f"{prefix}{name}.{ANY_NAME}.")
    if section is Engine:
        for settings in ENGINE_SETTINGS:
            for name, field in settings.model_fields.items():
                yield Key(f"{prefix}{name}", field, is_declared=False)


def is_section(field: FieldInfo | None) -> bool:
    """Whether the field is a section with keys of its own."""
    return field is not None and is_kind(field.annotation, Section)


def is_kind(annotation: Any, kind: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, kind)


def _find_markers(metadata: Any, annotation: Any, kind: type[Marker]) -> Iterator[Marker]:
    """Yield the markers in `metadata` and in the types within `annotation`, such as those of dict values."""
    yield from (entry for entry in metadata if isinstance(entry, kind))
    for inner in get_args(annotation):
        yield from _find_markers(getattr(inner, "__metadata__", ()), inner, kind)


def anchor_paths(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a job's nested `values` with every relative path in them joined to `folder`."""
    anchored = dict(values)
    for name, marker in _list_anchored():
        anchored = _change(anchored, name.split("."), marker, folder)
    return anchored


@cache
def _list_anchored() -> tuple[tuple[str, Anchored], ...]:
    """Return the keys, of a job or of a stage that selects, whose texts name something on this machine."""
    of_select = Key("select.decontaminate.against", Decontaminate.model_fields["against"])
    found = ((key.name, key.find(Anchored)) for key in (*walk_keys(), of_select))
    return tuple((name, marker) for name, marker in found if marker is not None)


def _change(values: Any, parts: list[str], marker: Anchored, folder: Path) -> Any:
    if not parts:
        return _change_texts(values, marker, folder)
    if isinstance(values, Mapping) and parts[0] == ANY_NAME:
        return {name: _change(value, parts[1:], marker, folder) for name, value in values.items()}
    if not isinstance(values, Mapping) or parts[0] not in values:
        return values
    return {**values, parts[0]: _change(values[parts[0]], parts[1:], marker, folder)}


def _change_texts(value: Any, marker: Anchored, folder: Path) -> Any:
    if isinstance(value, str):
        return marker.anchor(value, folder)
    if isinstance(value, list | tuple):
        return [_change_texts(entry, marker, folder) for entry in value]
    if isinstance(value, Mapping):
        return {name: _change_texts(entry, marker, folder) for name, entry in value.items()}
    return value


def wants_text(key: str) -> bool:
    """Return whether the value of the dotted `key` is a string or a list of strings."""
    section: Any = Job
    for part in key.split("."):
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return False
        section = field.annotation
    return str in list_kinds(section)


def suggest_key(key: str) -> str | None:
    """Return the closest name in the unknown key's section, or else the closest full key."""
    section, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, _list_names(section), n=1)
    if near:
        return near[0]
    if (named := _match_any(key)) != key:
        return _name_any(suggest_key(named), key)
    known = list_keys()
    same = [other for other in known if other.rpartition(".")[2] == name]
    return next(iter(same or difflib.get_close_matches(key, known, n=1)), None)


def _match_any(key: str) -> str:
    """Return the key as the schema has it: what users name a section of a table by is ANY_NAME."""
    tables = [known.name.split(f".{ANY_NAME}.")[0] for known in walk_keys() if f".{ANY_NAME}." in known.name]
    table = next((table for table in tables if key.startswith(f"{table}.")), None)
    parts = key.split(".")
    if table is None or ANY_NAME in parts or len(parts) <= table.count(".") + 2:
        return key
    parts[table.count(".") + 1] = ANY_NAME
    return ".".join(parts)


def _name_any(found: str | None, key: str) -> str | None:
    """Return the key that was `found` with the name that is in `key`."""
    if found is None or ANY_NAME not in found:
        return found
    return found.replace(ANY_NAME, key.split(".")[found.split(".").index(ANY_NAME)])


def list_keys() -> list[str]:
    """Return the dotted keys of a job, its sections first."""
    declared = [key.name for key in walk_keys() if key.is_declared]
    return [*Job.model_fields, *(name for name in declared if "." in name)]


def _list_names(section: str) -> list[str]:
    prefix = f"{section}." if section else ""
    below = [key.removeprefix(prefix) for key in list_keys() if key.startswith(prefix)]
    return [name for name in below if "." not in name]


def list_kinds(annotation: Any) -> set[Any]:
    """Return the types within `annotation`: str and None for `tuple[Annotated[str, ...], ...] | None`."""
    if get_origin(annotation) is Annotated:
        return list_kinds(get_args(annotation)[0])
    inner = get_args(annotation)
    if not inner or get_origin(annotation) is dict:
        return {annotation}
    return set().union(*(list_kinds(kind) for kind in inner))
