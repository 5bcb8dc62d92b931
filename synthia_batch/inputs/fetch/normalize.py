"""Normalizes input files: each becomes uncompressed JSONL or Parquet, as it is or as a cached copy."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from synthia_batch.core.digest import DigestCache, digest_file, digest_json
from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.core.types import ANY_ROW_BYTES, InputFile
from synthia_batch.inputs.fetch.cache import FACTS_NAME, find_copy, keep_copy
from synthia_batch.inputs.fetch.decompress import CHUNK_BYTES, open_decompressed
from synthia_batch.inputs.fetch.file_types import InputKind, LocatedFile, split_name
from synthia_batch.inputs.fetch.json_list import ByteReader
from synthia_batch.inputs.fetch.sniff import FileEncoding, sniff_file
from synthia_batch.inputs.fetch.stamps import check_unchanged, read_stamps
from synthia_batch.inputs.records.faults import describe_long_row

_log = logging.getLogger(__name__)

VERSION = 2
"""Increased when the same file would give a different copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizedFile:
    """The file to read, of a kind that has a reader.

    `digest` identifies its content; None means the digest of the file itself. `is_new`: it is a copy that
    this process has made.
    """

    path: Path
    kind: InputKind
    digest: str | None = None
    is_new: bool = False


def normalize_file(
    found: LocatedFile,
    cache: DigestCache,
    *,
    makes: bool = True,
    max_row_bytes: int,
    copies_long_lines: bool = False,
) -> NormalizedFile:
    """Return the file to read for `found`: itself if a reader takes it, else a copy, created if missing.

    `copies_long_lines`: lines of packed JSONL that are over the limit are left to the reader.
    """
    encoding = sniff_file(found.path, found.shown)
    if encoding.compression is None and encoding.kind.reader is not None:
        return NormalizedFile(path=found.path, kind=encoding.kind)
    packing = encoding.compression.name if encoding.compression is not None else None
    stamps = read_stamps([found.path], found.shown)
    key = digest_json([VERSION, encoding.kind.name, packing, digest_file(found.path, cache)])[:32]

    def build(target: Path) -> None:
        is_lines = encoding.kind.name == "jsonl"
        limit = ANY_ROW_BYTES if is_lines and copies_long_lines else max_row_bytes
        _build(found, encoding, target, limit)
        check_unchanged(stamps, found.shown)  # The key is the digest of what was there before.

    return get_normalized_copy(key, build, found, makes=makes)


def get_normalized_copy(
    key: str, build: Callable[[Path], None], found: LocatedFile, *, makes: bool
) -> NormalizedFile:
    """Return the cached copy with that key, created by `build` if missing.

    Raises:
        UsageError: It is missing and not `makes`.
    """
    directory, is_new = find_copy(key), False
    if directory is None:
        if not makes:
            raise UsageError(f"{found.shown}: its normalized copy is missing; run the job once")
        directory, is_new = keep_copy(key, build), True
        _log.info(f"{found.shown}: reading a normalized copy, {format_size(directory)} in {directory}")
    facts = json.loads((directory / FACTS_NAME).read_text(encoding="utf-8"))
    if facts.get("note"):
        _log.info(f"{found.shown}: {facts['note']}")
    kind = split_name(facts["file"]).kind
    if kind is None:
        raise ValueError(f"{directory / facts['file']}: a copy without a format")
    return NormalizedFile(path=directory / facts["file"], kind=kind, digest=facts["digest"], is_new=is_new)


@contextmanager
def drop_refused(*files: InputFile) -> Iterator[None]:
    """Remove those of the files that are copies which this process has made, if the block refuses them."""
    try:
        yield
    except InputRefused:
        for file in files:
            if file.is_new_copy:
                shutil.rmtree(file.path.parent, ignore_errors=True)
        raise


def _build(found: LocatedFile, encoding: FileEncoding, target: Path, max_row_bytes: int) -> None:
    """Write the copy and its facts into `target`, a new directory."""
    target.mkdir()
    kind = encoding.kind
    hasher, note = blake3(), ""
    with (
        open_decompressed(found.path, encoding.compression, found.shown) as content,
        (target / kind.rows_name).open("wb") as copy,
    ):
        source = _HashingReader(content, hasher)
        if kind.normalizer is not None:
            note = kind.load_normalizer()(source, copy, found.shown, max_row_bytes)
        elif kind.name == "jsonl":
            _copy_lines(source, copy, found.shown, max_row_bytes)
        else:
            shutil.copyfileobj(source, copy, CHUNK_BYTES)
    if not (target / kind.rows_name).stat().st_size:
        raise InputRefused([f"{found.shown}: there are no rows"])
    # A decompressed copy has a digest of its own; that of a rewritten one depends on this code.
    digest = digest_json([kind.name, hasher.hexdigest()]) if kind.normalizer is not None else None
    write_facts(target, kind.rows_name, digest, note)


def _copy_lines(source: ByteReader, copy: BinaryIO, shown: Path | str, max_row_bytes: int) -> None:
    """Copy lines, and refuse a longer one than the limit before the rest is unpacked."""
    number, line_bytes = 1, 0
    while content := source.read(CHUNK_BYTES):
        first, *others = content.split(b"\n")
        for length in (line_bytes + len(first), *map(len, others)):
            if length > max_row_bytes:
                raise InputRefused([f"{shown}:{number}: {describe_long_row(max_row_bytes)}"])
            number += 1
        line_bytes = len(others[-1]) if others else line_bytes + len(first)
        number -= 1
        copy.write(content)


def write_facts(target: Path, name: str, digest: str | None, note: str = "") -> None:
    """Write beside a copy the name of its file of rows, and the digest that identifies their content.

    `note` is what the user is told whenever the copy is used.
    """
    facts = {"file": name, "digest": digest, "note": note}
    (target / FACTS_NAME).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def format_size(directory: Path) -> str:
    """Return the size of a copy, such as 1.5 MB."""
    size = float(sum(file.stat().st_size for file in directory.iterdir()))
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


class _HashingReader(ByteReader):
    """Hashes the bytes that are read through it."""

    def __init__(self, inner: BinaryIO, hasher: Any) -> None:
        self._inner = inner
        self._hasher = hasher

    def read(self, size: int = -1) -> bytes:
        content = self._inner.read(size)
        self._hasher.update(content)
        return content

    def readline(self, size: int = -1) -> bytes:
        line = self._inner.readline(size)
        self._hasher.update(line)
        return line
