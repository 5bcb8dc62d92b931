"""Layers of a job: the keys that one source sets, and where."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a key is set. `origin` is its name in `plan`; the others, file:line:column of the key and of
    its value, are empty if there is no file.
    """

    origin: str
    at_key: str = ""
    at_value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The keys that one source sets, such as a job file. `origin` is the source's name in `plan`.

    `is_explicit` is False for values that the user did not set: a preset's, the model's recommendations
    and tuned ones. `places` has the place of each dotted key, with list entries by number; `faults` are
    the errors found while reading. `is_own` is False for a file of somebody else: it gets no secrets of this
    environment.
    """

    origin: str
    values: Mapping[str, Any]
    is_explicit: bool = True
    places: Mapping[str, Place] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    is_own: bool = True

    def sets(self, key: str) -> bool:
        """Whether it sets the dotted `key`."""
        return look_up(self.values, key) is not _ABSENT

    def find_place(self, key: str) -> Place:
        """Return where the dotted `key`, or the section or list that holds it, is set."""
        parts = key.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.places[name] for name in names if name in self.places), Place(origin=self.origin))


def find_layer(key: str, layers: Sequence[Layer]) -> Layer | None:
    """Return the first of `layers` that sets the dotted `key`."""
    return next((layer for layer in layers if layer.sets(key)), None)


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
