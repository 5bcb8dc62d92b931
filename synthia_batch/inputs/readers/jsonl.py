"""JSONL: one JSON object per line, read by lines with their byte offsets."""

import codecs
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from synthia_batch.core.types import Row
from synthia_batch.inputs.base import (
    CHECKPOINT_ROWS,
    Checkpoint,
    Columns,
    FileScan,
    Scan,
    Selection,
)
from synthia_batch.inputs.readers.file_state import ReadCursor, Watched, changed, report_unreadable
from synthia_batch.inputs.readers.json_types import convert_kept
from synthia_batch.inputs.readers.scan import InputScan, refuse_duplicates, refuse_empty, scan_files
from synthia_batch.inputs.records.columns import resolve_columns
from synthia_batch.inputs.records.faults import FaultList, RowFault
from synthia_batch.inputs.records.messages import describe
from synthia_batch.inputs.records.openai_batch import read_model
from synthia_batch.inputs.records.record import RecordParser, Values
from synthia_batch.inputs.records.strict_json import check_encodable, may_hold_surrogates, parse_json

MAX_LINE_BYTES = 64 * 1024 * 1024
"""One record of over 64 MiB is a file of another format, or one that lost its line ends."""

READ_BUFFER_BYTES = 1024 * 1024
ONLY_BLANK = ", only blank lines"


class Line(NamedTuple):
    """A line that is not blank. `content` is None where it is longer than a line may be."""

    number: int
    offset: int
    content: bytes | None


class JsonlSource:
    """A JSONL file. Blank lines and a byte order mark at its start are passed over."""

    def __init__(self, path: Path, shown: Path | str | None = None) -> None:
        """Read `path`, and call it `shown` in messages."""
        self._path = path
        self._shown = path if shown is None else shown
        self._watched = Watched(path, self._shown)
        self._cursor = ReadCursor()

    @property
    def shown(self) -> str:
        """The file, as the user named it."""
        return str(self._shown)

    def locate(self, row: Row) -> str:
        """Return where `row` stands, as file:line."""
        return f"{self._shown}:{row.line}"

    def detect(self, selection: Selection) -> Columns:
        """Return the columns, by the first record that can be read; see `Source.detect`."""
        faults = FaultList()
        with report_unreadable(self._shown), _open(self._path) as file:
            for line in islice(_iterate_lines(file, Checkpoint(offset=0, line=1)), selection.limit):
                try:
                    record, _ = parse_line(line)
                except RowFault as fault:
                    faults.add(f"{self._shown}:{line.number}", str(fault))
                else:
                    return _settle_columns(selection, record, self._shown)
        faults.raise_if_any()
        raise refuse_empty(self._shown, ONLY_BLANK)

    def peek(self, count: int) -> list[dict[str, Any]]:
        """Return the first records; see `Source.peek`."""
        faults, records = FaultList(), []
        with report_unreadable(self._shown), _open(self._path) as file:
            for line in islice(_iterate_lines(file, Checkpoint(offset=0, line=1)), count):
                try:
                    records.append(dict(parse_line(line)[0]))
                except RowFault as fault:
                    faults.add(f"{self._shown}:{line.number}", str(fault))
        faults.raise_if_any()
        return records

    def scan(
        self, selection: Selection, scratch: Path, on_progress: Callable[[int], None] | None = None
    ) -> Scan:
        """Check every selected row in one pass; see `Source.scan`."""
        scan = scan_files([self], selection, scratch, on_progress)
        if scan is None:
            raise refuse_empty(self._shown, ONLY_BLANK)
        refuse_duplicates(scan, self.read_rows, lambda row, earlier: self.tell_pair(row, self, earlier))
        return scan

    def scan_into(self, input_scan: InputScan) -> FileScan:
        """Add what one pass over the file finds; see `FileReader.scan_into`."""
        size = self._watched.begin_scan()
        input_scan.note_json()
        scanner = _Scanner(self._shown, input_scan)
        with report_unreadable(self._shown), _open(self._path) as file:
            for line in islice(_iterate_lines(file, Checkpoint(offset=0, line=1)), input_scan.wanted):
                scanner.take(line)
        self._watched.end_scan()
        return FileScan(rows=scanner.rows, size=size, checkpoints=tuple(scanner.checkpoints))

    def read_rows(self, scan: Scan, first: int, stop: int) -> Iterator[Row]:
        """Yield the rows `first` to `stop` (excluded); see `Source.read_rows`."""
        self._watched.check(scan.size)
        return self._cursor.read(scan, first, min(stop, scan.rows), self._iterate_rows)

    def tell_pair(self, row: Row, other: Any, earlier: Row) -> tuple[str, str]:
        """Return where `row` stands, and where an `earlier` one of another file or this one does."""
        return self.locate(row), f"at {other.locate(earlier)}"

    def _iterate_rows(self, scan: Scan, first: int) -> Iterator[Row]:
        """Yield every row from `first` on, from the checkpoint before it."""
        step, skip = divmod(first, CHECKPOINT_ROWS)
        checkpoint = scan.checkpoints[step]
        reader = _RowReader(self._shown, scan)
        with report_unreadable(self._shown), _open(self._path) as file:
            if checkpoint.offset:
                file.seek(checkpoint.offset - 1)
                if file.read(1) != b"\n":
                    raise changed(self._shown, f"no line starts at byte {checkpoint.offset}")
            lines = islice(_iterate_lines(file, checkpoint), skip, scan.rows - first + skip)
            index = first
            for index, line in enumerate(lines, start=first):
                yield reader.read(line, index)
            if index != scan.rows - 1:
                raise changed(self._shown, f"{index + 1} rows instead of {scan.rows}")


class _Scanner:
    """The state of one pass over one file."""

    def __init__(self, shown: Path | str, input_scan: InputScan) -> None:
        self.rows = 0
        self.checkpoints: list[Checkpoint] = []
        self._shown = shown
        self._input_scan = input_scan
        self._columns: Columns | None = None

    def take(self, line: Line) -> None:
        """Check one line and note its hash."""
        if self.rows % CHECKPOINT_ROWS == 0:
            self.checkpoints.append(Checkpoint(offset=line.offset, line=line.number))
        self.rows += 1
        try:
            record, text = parse_line(line)
            if self._columns is None:
                self._begin(record)
            self._input_scan.index.add(self._check(record, text))
        except RowFault as fault:
            self._input_scan.faults.add(f"{self._shown}:{line.number}", str(fault))
        self._input_scan.count(1)

    def _begin(self, record: Mapping[str, Any]) -> None:
        """Settle the columns by the first record, where no earlier file has."""
        input_scan = self._input_scan
        settled = input_scan.columns or _settle_columns(input_scan.selection, record, self._shown)
        self._columns = input_scan.settle(settled, self._shown)
        self._parser = RecordParser(self._columns)

    def _check(self, record: Mapping[str, Any], text: str) -> bytes:
        columns = self._columns
        if columns is None:
            raise ValueError("a record is checked once the columns are known")
        self._input_scan.note_names(record)
        if may_hold_surrogates(text):
            _check_encodable(record, columns)
        if columns.keep:
            self._input_scan.kinds.take(record)
        return self._parser.hash_record(_get_values(record, columns))


class _RowReader:
    """Makes rows of lines that a scan has checked."""

    def __init__(self, shown: Path | str, scan: Scan) -> None:
        self._shown = shown
        self._columns = scan.columns
        self._kept = scan.kept
        self._parser = RecordParser(scan.columns)
        self._duplicates = scan.duplicates
        self._rows = scan.rows
        self._numbers: list[int] = []
        self._numbers_start = 0

    def read(self, line: Line, index: int) -> Row:
        """Return the row of `line`. Raises IntegrityError where it is not what was scanned."""
        try:
            record, text = parse_line(line)
            if may_hold_surrogates(text):
                _check_encodable(record, self._columns)
            return self._parser.make_row(
                _get_values(record, self._columns),
                index=index,
                occurrence=self._number(index),
                kept=convert_kept(record, self._kept) if self._kept else {},
                line=line.number,
            )
        except RowFault as fault:
            raise changed(self._shown, f"line {line.number}: {fault}") from fault

    def _number(self, index: int) -> int:
        if not 0 <= index - self._numbers_start < len(self._numbers):
            stop = min(index + CHECKPOINT_ROWS, self._rows)
            self._numbers = self._duplicates.list_numbers(index, stop)
            self._numbers_start = index
        return self._numbers[index - self._numbers_start]


def parse_line(line: Line) -> tuple[dict[str, Any], str]:
    """Return the object on a line, and the line's text.

    Raises:
        RowFault: The line is too long, or not UTF-8, or not one JSON object.
    """
    if line.content is None:
        raise RowFault(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB; is this JSONL?")
    try:
        text = line.content.rstrip(b"\r\n").decode()
        record = parse_json(text)
    except UnicodeDecodeError as exc:
        raise RowFault(
            f"not valid UTF-8: byte {exc.start + 1} of the line is 0x{line.content[exc.start]:02x}"
            f"{_hint_truncated(line.content)}"
        ) from exc
    except RowFault as exc:
        raise RowFault(f"{exc}{_hint_truncated(line.content)}") from exc
    if type(record) is not dict:
        raise RowFault(f"a line must be a JSON object, not {describe(record)}")
    return record, text


def _hint_truncated(content: bytes) -> str:
    return "" if content.endswith(b"\n") else "; the file ends within this line, it is probably truncated"


def _settle_columns(selection: Selection, record: Mapping[str, Any], shown: Path | str) -> Columns:
    columns = resolve_columns(selection, tuple(record), shown)
    if columns.shape == "openai-batch":
        return dataclasses.replace(columns, model=read_model(record, columns.text or ""))
    return columns


def _get_values(record: Mapping[str, Any], columns: Columns) -> Values:
    """Return the values of the columns that make a row; text and id must be there.

    The text is the record itself where it is made of several columns.
    """
    try:
        text = record if columns.reads else record[columns.text or ""]
        identifier = record[columns.id] if columns.id is not None else None
    except KeyError as exc:
        raise RowFault(f"there is no {exc.args[0]!r} in this row") from exc

    def find(name: str | None) -> Any:
        return record.get(name) if name is not None else None

    return Values(text, find(columns.system), identifier, find(columns.sampling), find(columns.tools))


def _check_encodable(record: Mapping[str, Any], columns: Columns) -> None:
    for name in columns.used:
        check_encodable(name, record.get(name))


def _iterate_lines(file: BinaryIO, start: Checkpoint) -> Iterator[Line]:
    """Yield the lines of `file` that are not blank, from `start`, where it stands."""
    offset, number = start.offset, start.line
    while content := file.readline(MAX_LINE_BYTES + 1):
        size = len(content)
        if size > MAX_LINE_BYTES and not content.endswith(b"\n"):
            size += _skip_line(file)
            yield Line(number, offset, None)
        elif not content.isspace():
            if offset == 0 and content.startswith(codecs.BOM_UTF8):
                content = content[len(codecs.BOM_UTF8) :]
            if not content.isspace() and content:
                yield Line(number, offset, content)
        offset += size
        number += 1


def _skip_line(file: BinaryIO) -> int:
    """Go on to the next line; return the bytes passed over."""
    size = 0
    while content := file.readline(READ_BUFFER_BYTES):
        size += len(content)
        if content.endswith(b"\n"):
            break
    return size


def _open(path: Path) -> BinaryIO:
    return path.open("rb", buffering=READ_BUFFER_BYTES)
