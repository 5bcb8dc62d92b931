"""An exported file: written whole or not at all, plain or compressed by its name."""

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

from synthia_batch.errors import StorageFailed, UsageError
from synthia_batch.storage.atomic import temporary_path


def write_records(
    records: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    path: Path | None,
    *,
    as_csv: bool,
    replaces: bool,
) -> int:
    """Write `records` to `path`, or to stdout where it is None; return how many there were.

    They become CSV with `columns` or JSON lines, compressed where the name ends in .gz. With `replaces`
    a file that is there is replaced, once the new one is whole.

    Raises:
        UsageError: The file is there already, its directory is not, or a value cannot be written.
        StorageFailed: The disk refused it.
    """
    if path is None:
        return _write(records, columns, sys.stdout, as_csv=as_csv)
    if path.exists() and not replaces:
        raise UsageError(f"{path} is there already; name another file, or replace it with --force")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory; make it first")
    with _open_whole(path) as file:
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
def _open_whole(path: Path) -> Iterator[TextIO]:
    """Open a new file that becomes `path` at the end of the block, and is removed where that fails."""
    temporary = temporary_path(path)
    try:
        with _open_text(temporary, is_packed=path.suffix == ".gz") as text:
            yield text
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as exc:
        raise StorageFailed(
            f"could not write {path}: {exc.strerror}; make room, then export it again"
        ) from exc
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _open_text(path: Path, *, is_packed: bool) -> Iterator[TextIO]:
    if not is_packed:
        with path.open("w", encoding="utf-8", newline="") as text:
            yield text
        return
    # Without its name and time, so that the same run gives the same bytes.
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        yield text


def _flatten(value: Any) -> Any:
    """Return what a cell holds of a value: lists and structures as JSON."""
    is_plain = value is None or isinstance(value, str | int | float)
    return value if is_plain else json.dumps(value, ensure_ascii=False, default=_refuse)


def _refuse(value: object) -> str:
    raise UsageError(
        f"a kept column holds a {type(value).__name__}, which JSON cannot say; leave it out of --keep-columns"
    )
