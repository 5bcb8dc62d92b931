"""The keys that a job has: which want text, and which was meant."""

import difflib
from typing import Annotated, Any, get_args, get_origin

from synthia_batch.job.dotted import flatten
from synthia_batch.job.schema import Job


def wants_text(key: str) -> bool:
    """Return whether the value of the dotted `key` is one string, or strings."""
    section: Any = Job
    for part in key.split("."):
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return False
        section = field.annotation
    return str in _list_kinds(section)


def suggest_key(key: str) -> str | None:
    """Return what was probably meant by the unknown `key`: its name beside it, or a key elsewhere in full."""
    section, _, name = key.rpartition(".")
    near = difflib.get_close_matches(name, _list_names(section), n=1)
    if near:
        return near[0]
    known = list_keys()
    same = [other for other in known if other.rpartition(".")[2] == name]
    return next(iter(same or difflib.get_close_matches(key, known, n=1)), None)


def list_keys() -> list[str]:
    """Return the dotted keys of a job, its sections first."""
    return [*Job.model_fields, *flatten(Job(input={"path": "-"}).model_dump())]  # type: ignore[arg-type]


def _list_names(section: str) -> list[str]:
    prefix = f"{section}." if section else ""
    below = [key.removeprefix(prefix) for key in list_keys() if key.startswith(prefix)]
    return [name for name in below if "." not in name]


def _list_kinds(annotation: Any) -> set[Any]:
    """Return the types within `annotation`: str and None for `tuple[Annotated[str, ...], ...] | None`."""
    if get_origin(annotation) is Annotated:
        return _list_kinds(get_args(annotation)[0])
    inner = get_args(annotation)
    if not inner or get_origin(annotation) is dict:
        return {annotation}
    return set().union(*(_list_kinds(kind) for kind in inner))
