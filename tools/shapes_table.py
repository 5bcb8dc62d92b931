"""Writes the table of docs/reference/inputs.md from the shapes of records."""

from collections.abc import Iterator
from pathlib import Path

from synthia_batch.inputs.records.columns import (
    MESSAGES_COLUMN,
    PROMPT_COLUMNS,
    TURNS_COLUMN,
    describe_unused,
)
from synthia_batch.inputs.records.shapes import SHAPES, Shape

DOCS = Path(__file__).parent.parent / "docs" / "reference" / "inputs.md"
HEAD = "| shape | known by | columns honoured | named when ignored, with its flag |\n|---|---|---|---|\n"
NEAR = ("system_prompt", "tools", "history", "context", "id")
"""Columns of other programs' files that stand beside a prompt."""


def list_rows() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield each shape's name, what it is known by, and the columns that are read."""
    yield "`plain`", "the first of these that there is", PROMPT_COLUMNS
    yield "`plain`", f"`{MESSAGES_COLUMN}`", (MESSAGES_COLUMN,)
    yield "`plain`", f"`{TURNS_COLUMN}`", (TURNS_COLUMN,)
    for shape in SHAPES.values():
        yield f"`{shape.name}`", _describe_signs(shape), _list_columns(shape)


def render_table() -> str:
    """Return the table."""
    rows = (
        (name, signs, ", ".join(f"`{column}`" for column in columns), _list_ignored(columns))
        for name, signs, columns in list_rows()
    )
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def replace_table(text: str) -> str:
    """Return the page `text` with the table as it should be."""
    before, _, rest = text.partition(HEAD)
    after = rest[rest.index("\n\n") + 1 :]
    return before + render_table() + after


def _describe_signs(shape: Shape) -> str:
    signs = " and ".join(f"`{name}`" for name in sorted(shape.known_by))
    others = [f"`{name}`" for name in shape.beside if name in shape.or_by]
    return f"{signs} with one of {', '.join(others)}" if others else signs


def _list_columns(shape: Shape) -> tuple[str, ...]:
    columns = (shape.id, shape.text, *shape.beside, shape.tools)
    return tuple(dict.fromkeys(name for name in columns if name is not None))


def _list_ignored(columns: tuple[str, ...]) -> str:
    return describe_unused([name for name in NEAR if name not in columns])


if __name__ == "__main__":
    DOCS.write_text(replace_table(DOCS.read_text()))
