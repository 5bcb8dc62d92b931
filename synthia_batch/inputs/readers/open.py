"""From files to the source that reads them."""

import difflib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synthia_batch.core.types import InputFile
from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.inputs.base import Source

if TYPE_CHECKING:
    from synthia_batch.inputs.readers.multi_file import FileSource

PARQUET_MAGIC = b"PAR1"
MAGIC_BYTES = 6
JSONL_SUFFIXES = (".jsonl", ".ndjson")
FORMATS = (
    "JSONL (.jsonl, .ndjson), Parquet (.parquet), CSV (.csv, .tsv) and JSON lists (.json) are read, also "
    "packed (.gz, .zst)"
)


def open_source(path: Path, shown: Path | str | None = None) -> "FileSource":
    """Return the source that reads `path`, plain JSONL or Parquet; it is called `shown` in messages.

    Parquet is known by its first four bytes, else the suffix tells.

    Raises:
        UsageError: There is no such file, or it cannot be read, or its format is unknown.
        InputRefused: The file is empty.
    """
    shown = path if shown is None else shown
    magic = read_magic(path, shown)[: len(PARQUET_MAGIC)]
    suffix = path.suffix.lower()
    if magic == PARQUET_MAGIC or suffix == ".parquet":
        # pyarrow takes half a second to load; a JSONL job has no need of it here.
        from synthia_batch.inputs.readers.parquet import ParquetSource

        return ParquetSource(path, shown)
    if suffix in JSONL_SUFFIXES:
        from synthia_batch.inputs.readers.jsonl import JsonlSource

        return JsonlSource(path, shown)
    raise refuse_format(shown)


def open_files(files: Sequence[InputFile]) -> Source:
    """Return the source that reads all of `files`, one after the other.

    Raises:
        UsageError, InputRefused: As for `open_source`.
    """
    sources = [open_source(file.path, file.shown) for file in files]
    if len(sources) == 1:
        return sources[0]
    from synthia_batch.inputs.readers.multi_file import ManySource

    return ManySource(sources)


def refuse_format(shown: Path | str) -> UsageError:
    """Return the refusal of a file whose format is not known by its name."""
    hint = ""
    if str(shown).lower().endswith((".xlsx", ".xls")):
        hint = ". Save the sheet as CSV"
    elif str(shown).lower().endswith((".bz2", ".xz", ".zip")):
        hint = "; unpack it first"
    return UsageError(f"{shown}: the format is not known by this name; {FORMATS}{hint}")


def _suggest_file(path: Path) -> str:
    """Return the name of a file beside `path` that was probably meant, as a question."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def read_magic(path: Path, shown: Path | str) -> bytes:
    """Return the first six bytes of a regular file, or as many as it has.

    Raises:
        UsageError: There is no such file, or it cannot be read.
        InputRefused: It is empty.
    """
    try:
        if path.is_dir():
            raise UsageError(f"{shown}: is a directory; name the files in it. {FORMATS}")
        # Non-blocking: opening a pipe that nobody writes to would wait for ever.
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
