"""From a file as it was found to one that is plain JSONL or Parquet: itself, or a copy of it."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs.fetch.cache import FACTS_NAME, find_copy, keep_copy
from synthia_batch.inputs.fetch.csv_json import Pieces, write_csv_lines, write_json_lines
from synthia_batch.inputs.fetch.decompress import CHUNK_BYTES, find_packing, open_unpacked
from synthia_batch.inputs.fetch.file_types import LocatedFile, split_name
from synthia_batch.inputs.readers.open import PARQUET_MAGIC, read_magic, refuse_format

_log = logging.getLogger(__name__)

VERSION = 1
"""Changes when the same file would give another copy."""
DELIMITERS = {"csv": ",", "tsv": "\t"}
LOOKED_AT_BYTES = 4096

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizedFile:
    """What is read of a file. `digest` stands for its content, None where that is what is read."""

    path: Path
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEncoding:
    """How a file becomes plain: how it is packed, and what is in it."""

    kind: str
    packing: str | None


def normalize_file(found: LocatedFile, cache: DigestCache, *, makes: bool = True) -> NormalizedFile:
    """Return what is to be read of `found`: itself if it is plain, else a copy, made where there is none.

    Without `makes`, no copy is made.

    Raises:
        UsageError: It cannot be read, its format is not known, or its copy is not there and not to be made.
        InputRefused: It is empty or damaged.
        StorageFailed: The copy cannot be written.
    """
    encoding = look_at(found)
    if encoding.packing is None and encoding.kind in ("jsonl", "parquet"):
        return NormalizedFile(path=found.path)
    key = digest_json([VERSION, encoding.kind, encoding.packing, digest_file(found.path, cache)])[:32]
    directory = find_copy(key)
    if directory is None:
        if not makes:
            raise UsageError(f"{found.shown}: there is no plain copy of it; run the job once")
        directory = keep_copy(key, lambda target: _build(found, encoding, target))
        _log.info(f"{found.shown}: read from a plain copy, {spell_size(directory)} in {directory}")
    facts = json.loads((directory / FACTS_NAME).read_text(encoding="utf-8"))
    return NormalizedFile(path=directory / facts["file"], digest=facts["digest"])


def look_at(found: LocatedFile) -> FileEncoding:
    """Return what `found` is: by its first bytes, and by its name.

    Raises:
        UsageError: It cannot be read, or its format is not known.
        InputRefused: It is empty or damaged.
    """
    magic = read_magic(found.path, found.shown)
    named = split_name(str(found.shown).rpartition("/")[2])
    packing = find_packing(magic)
    if packing is None and named.packing is not None:
        raise InputRefused([f"{found.shown}: is called a {named.packing} file, and does not begin like one"])
    if packing is None and magic.startswith(PARQUET_MAGIC):
        return FileEncoding(kind="parquet", packing=None)
    if not found.guesses and named.kind is not None:
        return FileEncoding(kind=named.kind, packing=packing)
    if not found.guesses and packing is None:
        raise refuse_format(found.shown)
    with open_unpacked(found.path, packing, found.shown) as file:
        start = file.read(LOOKED_AT_BYTES)
    if start.startswith(PARQUET_MAGIC):
        return FileEncoding(kind="parquet", packing=packing)
    if not found.guesses:
        raise refuse_format(found.shown)
    kind = {b"{": "jsonl", b"[": "json"}.get(start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1], "csv")
    return FileEncoding(kind=kind, packing=packing)


def _build(found: LocatedFile, encoding: FileEncoding, target: Path) -> None:
    """Write the copy and what is known of it into `target`, a new directory."""
    target.mkdir()
    name = "rows.parquet" if encoding.kind == "parquet" else "rows.jsonl"
    hasher = blake3()
    with (
        open_unpacked(found.path, encoding.packing, found.shown) as packed,
        (target / name).open("wb") as copy,
    ):
        source = _Hashing(packed, hasher)
        if encoding.kind in DELIMITERS:
            write_csv_lines(source, copy, found.shown, DELIMITERS[encoding.kind])
        elif encoding.kind == "json":
            write_json_lines(source, copy, found.shown)
        else:
            shutil.copyfileobj(source, copy, CHUNK_BYTES)
    if not (target / name).stat().st_size:
        raise InputRefused([f"{found.shown}: there are no rows"])
    # Unpacked, it is the file that somebody packed; rewritten, it is only as good as its source.
    is_rewritten = encoding.kind not in ("jsonl", "parquet")
    digest = digest_json([encoding.kind, hasher.hexdigest()]) if is_rewritten else None
    write_facts(target, name, digest)


def write_facts(target: Path, name: str, digest: str | None) -> None:
    """Write beside a copy which of its files holds the rows, and what stands for their content."""
    facts = {"file": name, "digest": digest}
    (target / FACTS_NAME).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def spell_size(directory: Path) -> str:
    """Return how large a copy is, in words."""
    size = float(sum(file.stat().st_size for file in directory.iterdir()))
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class _Hashing(Pieces):
    """Reads from a file, by pieces or lines, and hashes what was read."""

    def __init__(self, inner: BinaryIO, hasher: Any) -> None:
        self._inner = inner
        self._hasher = hasher

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        content = self._inner.read(size)
        self._hasher.update(content)
        return content

    def __iter__(self) -> "_Hashing":
        return self

    def __next__(self) -> bytes:
        line = self._inner.readline()
        if not line:
            raise StopIteration
        self._hasher.update(line)
        return line
