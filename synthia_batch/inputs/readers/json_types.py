"""The types of kept columns in JSONL, from all values of each column."""

from collections.abc import Mapping, Sequence
from typing import Any

from synthia_batch.core.types import KeptColumn
from synthia_batch.inputs.readers.json_shape import JsonShape
from synthia_batch.inputs.records.faults import RowFault

_KINDS = {str: "string", bool: "bool", int: "int64", float: "double", dict: "json", list: "json"}
_WIDE = "wide"
"""An integer that a double cannot hold exactly."""


class KindTracker:
    """Collects the kinds of the kept columns' values, row by row."""

    def __init__(self, names: Sequence[str]) -> None:
        self._kinds: dict[str, set[str]] = {name: set() for name in names}
        self._shapes = {name: JsonShape() for name in names}

    def take(self, record: Mapping[str, Any]) -> None:
        """Add the values of one row; a missing one is null. Raises RowFault for an integer over 64 bits."""
        for name, kinds in self._kinds.items():
            value = record.get(name)
            if value is None:
                continue
            kinds.add(_KINDS[type(value)])
            if type(value) is list or type(value) is dict:
                self._shapes[name].take(value)
            if type(value) is int and not -(2**53) <= value <= 2**53:
                if not -(2**63) <= value < 2**63:
                    raise RowFault(f"column {name!r} holds an integer of over 64 bits; make it a string")
                kinds.add(_WIDE)

    def has_values(self, name: str) -> bool:
        """Return whether the column had a value other than null."""
        return bool(self._kinds.get(name))

    def is_exact(self, name: str) -> bool:
        """Return whether a double holds each integer of the column exactly."""
        return _WIDE not in self._kinds.get(name, set()) and (
            name not in self._shapes or self._shapes[name].is_exact
        )

    def resolve(self, *, beside_types: bool = False) -> tuple[KeptColumn, ...]:
        """Return the kept columns, with the type of their values if they have one, else double or json.

        What is null throughout, in lists and objects, has the type string, or null `beside_types` of other
        files.
        """
        return tuple(
            self._resolve(name, _resolve(kinds), beside_types) for name, kinds in self._kinds.items()
        )

    def _resolve(self, name: str, kind: str, beside_types: bool) -> KeptColumn:
        shape = self._shapes[name]
        if kind == "json" and self._kinds[name] == {"json"} and shape.root and not shape.has_rounded():
            # It imports pyarrow, which JSONL without lists and objects does not need.
            from synthia_batch.inputs.readers.kept_types import make_nested_column

            return make_nested_column(name, shape.root, "null" if beside_types else "string")
        return KeptColumn(name=name, type=kind)


def convert_kept(
    record: Mapping[str, Any], names: Sequence[str], kept: Sequence[KeptColumn]
) -> dict[str, Any]:
    """Return the kept values of a row, whose `names` may differ from the output's.

    Integers of a double column become floats.
    """
    values = {}
    for name, column in zip(names, kept, strict=True):
        value = record.get(name)
        values[column.name] = float(value) if column.type == "double" and value is not None else value
    return values


def _resolve(kinds: set[str]) -> str:
    if kinds == {"int64", "double"}:
        return "double"
    kinds = kinds - {_WIDE}
    if not kinds:
        return "string"  # Nulls only.
    return kinds.pop() if len(kinds) == 1 else "json"
