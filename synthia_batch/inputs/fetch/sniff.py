"""Determines a file's format and compression from its first bytes and its name."""

import difflib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.inputs.fetch.decompress import open_decompressed
from synthia_batch.inputs.fetch.file_types import (
    COMPRESSIONS,
    FORMATS,
    MAGIC_BYTES,
    Compression,
    InputKind,
    find_magic_kind,
    get_kind,
    guess_text_kind,
    split_name,
)
from synthia_batch.inputs.records.documents import describe_start

SNIFFED_BYTES = 64 * 1024
_JSON_KINDS = ("jsonl", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEncoding:
    """The format of a file's rows, and how the file is compressed."""

    kind: InputKind
    compression: Compression | None


def sniff_file(path: Path, shown: Path | str, *, guess: bool = False) -> FileEncoding:
    """Return the encoding of the file. Its name decides only between kinds without magic bytes, JSON apart.

    Whether JSON is lines or a list is decided by its content. With `guess`, the name is ignored, and a text
    without magic bytes gets its most likely kind.

    Raises:
        UsageError: The file cannot be read, or its format is unknown.
        InputRefused: It is empty, or its content is not what its name says.
    """
    magic = read_magic(path, shown)
    name = split_name(path.name)
    named = None if guess else name.kind
    compression = next((each for each in COMPRESSIONS if magic.startswith(each.magic)), None)
    if compression is None:
        if name.compression is not None and not guess:
            raise InputRefused(
                [f"{shown}: expected a {name.compression.name} file by its name, got other content"]
            )
        kind = find_magic_kind(magic)
        if kind is not None:
            return FileEncoding(kind=kind, compression=None)
    if named is not None and named.name not in _JSON_KINDS:
        return FileEncoding(kind=named, compression=compression)
    start = read_start(path, compression, shown)
    kind = find_magic_kind(start) if named is None else None
    kind = kind or find_json_kind(start, named)
    if kind is None and guess:
        kind = guess_text_kind(start)
    if kind is None and named is None:
        raise refuse_format(shown)
    if kind is None:
        raise InputRefused([f"{shown}: {_refuse_json(start)}"])
    return FileEncoding(kind=kind, compression=compression)


def read_start(path: Path, compression: Compression | None, shown: Path | str) -> bytes:
    """Return the first SNIFFED_BYTES of the decompressed content. Raises InputRefused if it is damaged."""
    with open_decompressed(path, compression, shown) as file:
        return file.read(SNIFFED_BYTES)


def find_json_kind(start: bytes, named: InputKind | None) -> InputKind | None:
    """Return the kind of JSON that begins with `start`, None if it is no JSON with rows.

    `named` is the kind of the file's name. A damaged line is left to the reader, which names it.
    """
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        is_of_objects = text[1:].lstrip()[:1] in (b"{", b"]", b"")
        return get_kind("json") if is_of_objects else named
    if not text:
        return named
    line, end, _ = text.partition(b"\n")
    if text.startswith(b"{") and _is_object(line, is_whole=bool(end) or len(start) < SNIFFED_BYTES):
        return get_kind("jsonl")
    # Only an object that is spread over lines begins like that.
    is_damaged = named is not None and named.name == "jsonl" and line.strip() != b"{"
    return named if is_damaged else None


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
    if str(shown).lower().endswith((".xls", ".xlsb", ".ods")):
        hint = ". Save the sheet as .xlsx or CSV"
    elif str(shown).lower().endswith(".txt"):
        hint = ". If each file is a prompt, name their folder; if each line is one, write JSONL: "
        hint += "`jq -R '{prompt: .}' OLD > NEW.jsonl`"
    elif str(shown).lower().endswith((".bz2", ".xz", ".zip")):
        hint = "; decompress it first"
    return UsageError(f"{shown}: unknown format; {FORMATS}{hint}")


def _is_object(line: bytes, *, is_whole: bool) -> bool:
    if not is_whole:
        return True
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_json(start: bytes) -> str:
    """Return what a JSON file with no rows was expected to hold, and what it holds."""
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = f"content that begins with {first[:20].decode(errors='replace')!r}"
    if first.startswith(b"{"):
        found = "an object that does not end on its first line"
    return (
        f"expected one JSON object on each line, or a list [{{...}}, {{...}}], got {found}; "
        f"{describe_start(first.decode(errors='replace'))}"
    )


def _suggest_file(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
