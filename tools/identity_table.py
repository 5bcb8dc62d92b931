"""Writes the table of docs/explanation/determinism.md from the identity classes in the job's schema."""

from collections.abc import Iterator
from pathlib import Path

from synthia_batch.job.identity import BESIDE_KEYS
from synthia_batch.job.keys import walk_keys
from synthia_batch.job.markers import IdentityClass

DOCS = Path(__file__).parent.parent / "docs" / "explanation" / "determinism.md"
HEAD = "| setting | class | field | why |\n|---|---|---|---|\n"


def list_classes() -> Iterator[tuple[str, IdentityClass]]:
    """Yield the setting or the other part of the identity, and its class; a setting once."""
    seen: set[str] = set()
    for key in walk_keys():
        found = key.find(IdentityClass)
        if found is not None and key.name not in seen:
            seen.add(key.name)
            yield f"`{key.name}`", found
    yield from BESIDE_KEYS.items()


def render_table() -> str:
    """Return the table: rows that always count, those of strict determinism, and those that never do."""
    rows = list(list_classes())
    return HEAD + "".join(
        f"| {setting} | {kind} | {f'`{found.field}` ' if found.field else ''}| {found.why} |\n"
        for kind in ("always", "strict", "never")
        for setting, found in rows
        if found.kind == kind
    )


def replace_table(text: str) -> str:
    """Return the page `text` with the table as it should be."""
    before, _, rest = text.partition(HEAD)
    after = rest[rest.index("\n\n") + 1 :]
    return before + render_table() + after


if __name__ == "__main__":
    DOCS.write_text(replace_table(DOCS.read_text()))
