"""From a path to the source that reads it."""

import difflib
import os
import stat
from pathlib import Path

from synthia_batch.errors import InputRefused, UsageError
from synthia_batch.source.base import Source

PARQUET_MAGIC = b"PAR1"
JSONL_SUFFIXES = (".jsonl", ".ndjson")
FORMATS = "JSONL (.jsonl, .ndjson) and Parquet (.parquet) are read, uncompressed"


def open_source(path: Path) -> Source:
    """Return the source that reads `path`: Parquet by its first four bytes, else by suffix.

    Raises:
        UsageError: There is no such file, or it cannot be read, or its format is unknown.
        InputRefused: The file is empty.
    """
    magic = _read_magic(path)
    suffix = path.suffix.lower()
    if magic == PARQUET_MAGIC or suffix == ".parquet":
        # pyarrow takes half a second to load; a JSONL job has no need of it here.
        from synthia_batch.source.parquet import ParquetSource

        return ParquetSource(path)
    if suffix in JSONL_SUFFIXES:
        from synthia_batch.source.jsonl import JsonlSource

        return JsonlSource(path)
    raise UsageError(f"{path}: the format is not known by this name; {FORMATS}{_hint_conversion(path)}")


def _hint_conversion(path: Path) -> str:
    """Return how to come to a format that is read, for those that people have."""
    suffix = path.suffix.lower()
    reader = {".csv": "read_csv", ".tsv": "read_table", ".json": "read_json", ".xlsx": "read_excel"}.get(
        suffix
    )
    if reader is not None:
        target = path.with_suffix(".parquet")
        return f". With pandas: pandas.{reader}({str(path)!r}).to_parquet({str(target)!r})"
    return "; decompress it first" if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") else ""


def _suggest_file(path: Path) -> str:
    """Return the name of a file beside `path` that was probably meant, as a question."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _read_magic(path: Path) -> bytes:
    """Return the first four bytes of a regular file that has any."""
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a directory; name one file in it. {FORMATS}")
        # Non-blocking: opening a pipe that nobody writes to would wait for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path}: is not a regular file; save it to one, as it is read twice")
            magic = file.read(len(PARQUET_MAGIC))
    except FileNotFoundError as exc:
        raise UsageError(f"{path}: there is no such file; check the path{_suggest_file(path)}") from exc
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise UsageError(f"{str(path)!r}: is not a path: {exc}") from exc
    if not magic:
        raise InputRefused([f"{path}: the file is empty"])
    return magic
