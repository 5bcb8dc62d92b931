"""Rewrites the first sheet of an Excel workbook as JSON lines, each row on the line of its number."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from synthia_batch.core.errors import InputRefused, UsageError
from synthia_batch.inputs.fetch.csv_lines import read_header
from synthia_batch.inputs.fetch.json_list import ByteReader
from synthia_batch.inputs.records.faults import FaultList, RowFault, describe_long_row

MAX_ROWS = 1_048_576
"""Of a sheet: https://support.microsoft.com/office/1672b34d-7043-467e-8e27-269d656771c3"""
MAX_SHARED_BYTES = 2**30
"""The texts of a workbook are in memory together."""


def write_sheet_lines(source: ByteReader, target: BinaryIO, shown: Path | str, max_row_bytes: int) -> str:
    """Write each row of the first visible sheet; the first row names the columns.

    Empty rows are skipped; an empty cell is null. Dates and times are ISO 8601. Returns which sheet was read
    if there are several.

    Raises:
        UsageError: The extra is not installed.
        InputRefused: It is no workbook, or a row has faults.
    """
    try:
        import openpyxl
    except ImportError as exc:
        raise UsageError(
            f"{shown}: reading Excel sheets needs the extra 'xlsx': pip install 'synthia-batch[xlsx]'; "
            "or save the sheet as CSV"
        ) from exc
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(source, file)
        try:
            _refuse_large(file, shown)
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"] or book.worksheets
            _write_rows(_iterate_rows(sheets[0]), target, shown, max_row_bytes)
        except (InputRefused, MemoryError):
            raise
        except Exception as exc:  # What its ZIP and XML libraries raise on damaged files is not documented.
            reason = str(exc).strip().partition("\n")[0][:200] or repr(exc)
            raise InputRefused(
                [f"{shown}: not a readable .xlsx workbook, damaged, or locked with a password: {reason}"]
            ) from exc
    others = [sheet.title for sheet in book.worksheets if sheet is not sheets[0]]
    names = ", ".join(repr(name) for name in others)
    return f"reading the sheet {sheets[0].title!r}; not read: {names}" if others else ""


def _refuse_large(file: BinaryIO, shown: Path | str) -> None:
    with zipfile.ZipFile(file) as archive:
        sizes = [entry.file_size for entry in archive.infolist() if "sharedStrings" in entry.filename]
    if max(sizes, default=0) > MAX_SHARED_BYTES:
        raise InputRefused([f"{shown}: over 1 GiB of text in one workbook; save the sheet as CSV"])


def _iterate_rows(sheet: Any) -> Iterator[list[Any]]:
    """Yield the cells of each row, the empty ones at its end cut off."""
    sheet.reset_dimensions()  # Some programs write wrong ones, at which the reader would stop.
    for number, row in enumerate(sheet.iter_rows(), start=1):
        if number > MAX_ROWS:
            raise ValueError("a sheet of more rows than Excel has")
        cells = list(row)
        while cells and cells[-1].value is None:
            cells.pop()
        yield cells


def _write_rows(rows: Iterator[list[Any]], target: BinaryIO, shown: Path | str, max_row_bytes: int) -> None:
    faults = FaultList()
    names: Sequence[str] | None = None
    written = 0
    for number, cells in enumerate(rows, start=1):
        if not cells:
            continue
        try:
            values = [_convert(cell) for cell in cells]
            if names is None:
                names = read_header(["" if value is None else str(value) for value in values], "row")
                continue
            if len(values) > len(names):
                raise RowFault(f"{len(values)} cells, but the first row names {len(names)} columns")
            values += [None] * (len(names) - len(values))
            text = json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False).encode()
            if len(text) > max_row_bytes:
                raise RowFault(describe_long_row(max_row_bytes))
        except RowFault as fault:
            faults.add(f"{shown}:{number}", str(fault))
            if names is None:
                break
            continue
        target.write(b"\n" * (number - written - 1) + text + b"\n")
        written = number
    faults.raise_if_any()


def _convert(cell: Any) -> Any:
    from openpyxl.utils.escape import unescape

    value = cell.value
    if value is not None and cell.data_type == "e":
        raise RowFault(f"the cell {cell.coordinate} has the error {value}")
    if isinstance(value, str):
        return unescape(value)  # Excel writes a carriage return as _x000D_.
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, timedelta) else value
