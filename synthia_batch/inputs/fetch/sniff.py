"""Determines a file's format and compression from its first bytes and its name."""

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs.fetch.decompress import open_decompressed
from synthia_batch.inputs.fetch.file_types import (
    COMPRESSIONS,
    FORMATS,
    MAGIC_BYTES,
    Compression,
    InputKind,
    find_magic_kind,
    guess_text_kind,
    split_name,
)

SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEncoding:
    """The format of a file's rows, and how the file is compressed."""

    kind: InputKind
    compression: Compression | None


def sniff_file(path: Path, shown: Path | str, *, guess: bool = False) -> FileEncoding:
    """Return the encoding of the file: magic bytes take precedence over its name.

    With `guess`, the name is ignored and a text without magic bytes gets its most likely kind.

    Raises:
        UsageError: The file cannot be read, or its format is unknown.
        InputRefused: It is empty, or not compressed as its name says.
    """
    magic = read_magic(path, shown)
    name = split_name(path.name)
    compression = next((each for each in COMPRESSIONS if magic.startswith(each.magic)), None)
    if compression is None:
        if name.compression is not None and not guess:
            raise InputRefused(
                [f"{shown}: expected a {name.compression.name} file by its name, got other content"]
            )
        kind = find_magic_kind(magic)
        if kind is not None:
            return FileEncoding(kind=kind, compression=None)
    if name.kind is not None and not guess:
        return FileEncoding(kind=name.kind, compression=compression)
    if compression is None and not guess:
        raise refuse_format(shown)
    with open_decompressed(path, compression, shown) as file:
        start = file.read(SNIFFED_BYTES)
    kind = find_magic_kind(start) or (guess_text_kind(start) if guess else None)
    if kind is None:
        raise refuse_format(shown)
    return FileEncoding(kind=kind, compression=compression)


def read_magic(path: Path, shown: Path | str) -> bytes:
    """Return the first MAGIC_BYTES of a regular file, or as many as it has.

    Raises:
        UsageError: There is no such file, or it cannot be read.
        InputRefused: It is empty.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{shown}: expected a file, got a directory; name the files in it ({FORMATS})")
        # Non-blocking: opening a pipe that nobody writes to would block forever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{shown}: is not a regular file; pipe it in as - instead")
            magic = file.read(MAGIC_BYTES)
    except FileNotFoundError as exc:
        raise UsageError(f"{shown}: there is no such file; check the path{_suggest_file(path)}") from exc
    except OSError as exc:
        raise UsageError(f"{shown}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"{str(path)!r}: is not a path: {exc}") from exc
    if not magic:
        raise InputRefused([f"{shown}: the file is empty"])
    return magic


def refuse_format(shown: Path | str) -> UsageError:
    """Return the error for a file whose name shows no known format."""
    hint = ""
    if str(shown).lower().endswith((".xlsx", ".xls")):
        hint = ". Save the sheet as CSV"
    elif str(shown).lower().endswith((".bz2", ".xz", ".zip")):
        hint = "; decompress it first"
    return UsageError(f"{shown}: unknown format; {FORMATS}{hint}")


def _suggest_file(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
