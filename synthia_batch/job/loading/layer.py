"""What one place says about a job."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a key is said. `origin` is how `plan` names it; the others, file:line:column of the key and
    of its value, are empty where there is no file.
    """

    origin: str
    at_key: str = ""
    at_value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one place says about the job. `origin` is how `plan` names that place.

    `is_explicit` is False where nobody said it: a preset's values, what the model recommends, what
    `tune` has found. `places` tells by dotted key where in it a key is said, an entry of a list by its
    number; `faults` are what was wrong with it as it was read.
    """

    origin: str
    values: Mapping[str, Any]
    is_explicit: bool = True
    places: Mapping[str, Place] = field(default_factory=dict)
    faults: tuple[str, ...] = ()

    def says(self, key: str) -> bool:
        """Whether it says anything of the dotted `key`."""
        return look_up(self.values, key) is not _ABSENT

    def find_place(self, key: str) -> Place:
        """Return where the dotted `key` is said, or what holds it."""
        parts = key.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.places[name] for name in names if name in self.places), Place(origin=self.origin))


def find_layer(key: str, layers: Sequence[Layer]) -> Layer | None:
    """Return the first of `layers` that says something of the dotted `key`."""
    return next((layer for layer in layers if layer.says(key)), None)


def look_up(values: Any, key: str) -> Any:
    """Return the value of the dotted `key`, in which numbers are those of list entries."""
    for part in key.split("."):
        if isinstance(values, Mapping):
            values = values.get(part, _ABSENT)
        elif isinstance(values, list | tuple) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return _ABSENT
    return values


def walk_texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in `values`, with its dotted key."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from walk_texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            yield from walk_texts(value, f"{key}.{number}")
