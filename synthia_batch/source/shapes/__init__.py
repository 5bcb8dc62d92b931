"""Shapes of records that are not ours, and how each is known by its columns.

A shape says which columns hold what; its module turns their values into a conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How records of one shape are known. `text` is the column of its conversation, of the `kind`.

    `other_kinds` are what that column may be said to hold as well. `beside` are columns that are read
    with it where they are there. `id` is the column of its ids.
    """

    name: str
    kind: str
    text: str
    known_by: frozenset[str]
    other_kinds: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    id: str | None = None


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            name="openai-batch",
            kind="messages",
            text="body",
            known_by=frozenset({"custom_id", "body"}),
            beside=("method", "url"),
            id="custom_id",
        ),
        Shape(
            name="sharegpt",
            kind="messages",
            text="conversations",
            known_by=frozenset({"conversations"}),
            other_kinds=("turns",),
        ),
        Shape(
            name="alpaca",
            kind="prompt",
            text="instruction",
            known_by=frozenset({"instruction", "input"}),
            beside=("input",),
        ),
    )
}


def find_shape(names: Sequence[str]) -> Shape | None:
    """Return the shape that records with columns of these `names` have, or None."""
    return next((shape for shape in SHAPES.values() if shape.known_by <= set(names)), None)
