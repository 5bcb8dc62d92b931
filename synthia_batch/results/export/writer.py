"""Writes an exported file atomically, compressed if its name ends in .gz."""

import csv
import gzip
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from synthia_batch.core.errors import StorageFailed, UsageError
from synthia_batch.core.files import create_file
from synthia_batch.storage.atomic import temporary_path

_MARK = "\ufeff"
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""First characters at which spreadsheets compute a cell (OWASP, CSV injection)."""


def write_records(
    records: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    path: Path | None,
    *,
    as_csv: bool,
    replaces: bool,
    for_spreadsheet: bool = False,
) -> int:
    """Write `records` to `path`, or to stdout if it is None; return their number.

    The format is CSV with `columns`, or JSON lines. With `replaces` an existing file is replaced once the new
    one is complete. The file's directory is created. CSV `for_spreadsheet` begins with a byte order mark, by
    which Excel knows UTF-8, and has no cell that a spreadsheet would compute.

    Raises:
        UsageError: The file exists, or a value cannot be written.
        StorageFailed: The file could not be written.
    """
    if for_spreadsheet:
        records = ({key: _disarm(value) for key, value in record.items()} for record in records)
    if path is None:
        sys.stdout.write(_MARK if for_spreadsheet else "")
        return _write(records, columns, sys.stdout, as_csv=as_csv)
    if path.exists() and not replaces:
        raise UsageError(f"{path} exists; use another name, or replace it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"{path.parent}: cannot be created: {exc.strerror}; name another file") from exc
    with _open_atomic(path) as file:
        file.write(_MARK if for_spreadsheet else "")
        return _write(records, columns, file, as_csv=as_csv)


def _write(
    records: Iterable[Mapping[str, Any]], columns: Sequence[str], file: TextIO, *, as_csv: bool
) -> int:
    if as_csv:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
    count = 0
    for record in records:
        if as_csv:
            table.writerow({key: _flatten(value) for key, value in record.items()})
        else:
            file.write(json.dumps(record, ensure_ascii=False, default=_refuse) + "\n")
        count += 1
    return count


@contextmanager
def _open_atomic(path: Path) -> Iterator[TextIO]:
    """Open a temporary file that becomes `path` after the block and is removed on failure."""
    temporary = temporary_path(path)
    try:
        with _open_text(temporary, is_compressed=path.suffix == ".gz") as text:
            yield text
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        raise StorageFailed(
            f"could not write {path}: {exc.strerror}; free disk space, then export again"
        ) from exc
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _open_text(path: Path, *, is_compressed: bool) -> Iterator[TextIO]:
    if not is_compressed:
        with os.fdopen(create_file(path), "w", encoding="utf-8", newline="") as text:
            yield text
        return
    # Without name and time in the header, so that the same run gives the same bytes.
    with (
        os.fdopen(create_file(path), "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as compressed,
        io.TextIOWrapper(compressed, encoding="utf-8", newline="") as text,
    ):
        yield text


def _disarm(value: Any) -> Any:
    """Return text that a spreadsheet would compute with an apostrophe before it, which makes it text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _flatten(value: Any) -> Any:
    """Return the value of a CSV cell: lists and structures as JSON."""
    is_plain = value is None or isinstance(value, str | int | float)
    return value if is_plain else json.dumps(value, ensure_ascii=False, default=_refuse)


def _refuse(value: object) -> str:
    raise UsageError(
        f"a kept column holds a {type(value).__name__}, which JSON cannot hold; remove it from --keep-columns"
    )
