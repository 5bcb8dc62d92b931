"""The shape that the lists and objects of a kept column have in common, from all its values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_NODES = 1000
"""A shape of more lists, objects and values is none: it is data under names of its own, not a type."""
MAX_DEPTH = 32
_SCALARS = {str: "string", bool: "bool", int: "int64", float: "double"}
_NUMBERS = {"int64", "double"}
WIDEST_EXACT = 2**53
"""The largest integer up to which a double holds each one exactly."""


@dataclass(slots=True)
class Node:
    """The shape of the values in one place. `kind` is None while they are all null.

    A list has its `item`, an object (`struct`) its `fields`, in the order of the first one.
    """

    kind: str | None = None
    item: Node | None = None
    fields: dict[str, Node] = field(default_factory=dict)


class JsonShape:
    """Collects the shape of values. `root` is None once they disagree: then no Arrow type holds them all.

    Objects agree if they have the same names; integers and other numbers agree, as numbers. `is_exact`: a
    double holds every integer that was found.
    """

    def __init__(self) -> None:
        self.root: Node | None = Node()
        self.is_exact = True
        self._nodes = 1

    def take(self, value: Any) -> None:
        if self.root is not None and not self._fits(self.root, value, 0):
            self.root = None

    def _fits(self, node: Node, value: Any, depth: int) -> bool:
        if value is None:
            return True
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            return False
        if type(value) is list:
            return self._fits_list(node, value, depth)
        if type(value) is dict:
            return self._fits_struct(node, value, depth)
        kind = _SCALARS[type(value)]
        if kind == "int64" and not -WIDEST_EXACT <= value <= WIDEST_EXACT:
            self.is_exact = False
            if not -(2**63) <= value < 2**63:
                return False
        if node.kind is None or {node.kind, kind} == _NUMBERS:
            node.kind = kind if node.kind is None else "number"
        return node.kind == kind or (node.kind == "number" and kind in _NUMBERS)

    def _fits_list(self, node: Node, value: list[Any], depth: int) -> bool:
        if node.kind is None:
            node.kind, node.item = "list", Node()
            self._nodes += 1
        item = node.item
        return item is not None and all(self._fits(item, inner, depth + 1) for inner in value)

    def _fits_struct(self, node: Node, value: dict[str, Any], depth: int) -> bool:
        if node.kind is None and value:  # Parquet has no objects without names.
            node.kind, node.fields = "struct", {name: Node() for name in value}
            self._nodes += len(value)
        if node.kind != "struct" or node.fields.keys() != value.keys():
            return False
        return all(self._fits(node.fields[name], inner, depth + 1) for name, inner in value.items())

    def has_rounded(self, node: Node | None = None) -> bool:
        """Return whether a type with doubles would round an integer: one too wide, beside other numbers."""
        node = self.root if node is None else node
        if self.is_exact or node is None:
            return False
        inner = [*node.fields.values(), *([node.item] if node.item is not None else [])]
        return node.kind == "number" or any(map(self.has_rounded, inner))
