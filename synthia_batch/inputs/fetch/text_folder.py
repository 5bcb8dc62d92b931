"""Folders of .txt files: each file is a row, its name the id."""

import json
from collections.abc import Sequence
from pathlib import Path

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.inputs.fetch.file_types import LocatedFile, get_kind
from synthia_batch.inputs.fetch.normalize import VERSION, NormalizedFile, get_normalized_copy, write_facts
from synthia_batch.inputs.records.faults import FaultList, describe_long_row

SUFFIX = ".txt"
_BOM = "\ufeff"


def list_texts(names: Sequence[str]) -> list[str]:
    """Return the text files among the paths in a folder."""
    return [name for name in names if name.lower().endswith(SUFFIX)]


def normalize_texts(
    found: LocatedFile, cache: DigestCache, *, makes: bool = True, max_row_bytes: int
) -> NormalizedFile:
    """Return a file of the rows of a folder: `id`, the path in the folder, and `prompt`, the whole text."""
    kind = get_kind("txt")
    digest = digest_json(["txt", *([name, digest_file(found.path / name, cache)] for name in found.texts)])

    def build(target: Path) -> None:
        target.mkdir()
        _write_texts(found, target / kind.rows_name, max_row_bytes)
        write_facts(target, kind.rows_name, digest)

    key = digest_json([VERSION, digest])[:32]
    copy = get_normalized_copy(key, build, found, makes=makes)
    return NormalizedFile(path=copy.path, kind=kind, digest=digest, is_new=copy.is_new)


def _write_texts(found: LocatedFile, target: Path, max_row_bytes: int) -> None:
    faults = FaultList()
    with target.open("wb") as copy:
        for name in found.texts:
            path = found.path / name
            try:
                size = path.stat().st_size
                text = path.read_bytes().decode() if size <= max_row_bytes else None
            except UnicodeDecodeError as exc:
                faults.add(f"{found.shown}/{name}", f"not valid UTF-8, at byte {exc.start + 1}; convert it")
                continue
            if text is None:
                faults.add(f"{found.shown}/{name}", describe_long_row(max_row_bytes))
            elif not text.strip(f"{_BOM} \t\r\n"):
                faults.add(f"{found.shown}/{name}", "the file is blank")
            else:
                row = {"id": name, "prompt": text.removeprefix(_BOM)}
                copy.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    faults.raise_if_any()
