"""What an input was found to be, before it is known how it is read."""

from dataclasses import dataclass
from pathlib import Path

PACKINGS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
}
IN_DIRECTORIES = ("jsonl", "parquet", "csv", "tsv")
"""The kinds of files that a directory is searched for: its .json files are seldom rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedFile:
    """A file of rows on this machine. `shown` names it to a person.

    `guesses` says that its name tells nothing of its kind, and its first bytes must.
    """

    path: Path
    shown: Path | str
    guesses: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NameParts:
    """What a file's name tells: its stem, its kind and how it is packed."""

    stem: str
    kind: str | None
    packing: str | None


def split_name(name: str) -> NameParts:
    """Return what `name`, the last part of a path, tells."""
    path = Path(name)
    packing = PACKINGS.get(path.suffix.lower())
    if packing is not None:
        path = Path(path.stem)
    kind = KINDS.get(path.suffix.lower())
    return NameParts(stem=path.stem if kind else path.name, kind=kind, packing=packing)
