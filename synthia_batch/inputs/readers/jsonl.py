"""JSONL: one JSON object per line."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from synthia_batch.core.errors import InputRefused
from synthia_batch.core.types import Row
from synthia_batch.inputs.base import CHECKPOINT_ROWS, DETECT_ROWS, Checkpoint, Columns, FileScan, Scan
from synthia_batch.inputs.readers.detect import FirstNames
from synthia_batch.inputs.readers.file_source import FileSource
from synthia_batch.inputs.readers.file_state import changed, report_unreadable
from synthia_batch.inputs.readers.json_types import convert_kept
from synthia_batch.inputs.readers.lines import Line, iterate_lines, open_lines, parse_line
from synthia_batch.inputs.readers.scan import InputScan
from synthia_batch.inputs.records.documents import describe_document
from synthia_batch.inputs.records.faults import FaultList, RowFault
from synthia_batch.inputs.records.messages import has_messages, has_other_fields
from synthia_batch.inputs.records.openai_batch import has_calls, read_choices, read_model, wants_logprobs
from synthia_batch.inputs.records.record import RecordParser, Values
from synthia_batch.inputs.records.shapes import TURNS_OF_MESSAGES
from synthia_batch.inputs.records.strict_json import check_encodable, may_hold_surrogates

DETECT_BYTES = 8 * 1024 * 1024
"""The first rows, from which columns are detected, end after so many bytes."""
START = Checkpoint(offset=0, line=1)


class JsonlSource(FileSource):
    """A JSONL file. Blank lines and a byte order mark at its start are skipped."""

    empty_hint = ", only blank lines"
    _head: Sequence[Mapping[str, Any]] = ()
    """The first records, from when their names are read until the columns are refined."""

    def read_names(self, limit: int | None) -> FirstNames:
        """Return the columns of the first records that can be parsed; see `FileSource.read_names`."""
        faults = FaultList()
        places: dict[str, str] = {}
        head: list[Mapping[str, Any]] = []
        rows, is_whole = 0, True
        with report_unreadable(self._shown), open_lines(self._path) as file:
            for line in islice(self._iterate_lines(file), limit):
                if rows == DETECT_ROWS or line.offset > DETECT_BYTES:
                    is_whole = False
                    break
                rows += 1
                try:
                    record, _ = parse_line(line)
                except RowFault as fault:
                    if not places:
                        faults.add(f"{self._shown}:{line.number}", str(fault))
                else:
                    head.append(record)
                    for name in record:
                        places.setdefault(name, f"{self._shown}:{line.number}")
        if not places:
            faults.raise_if_any()
        self._head = head
        advice = describe_document(head[0]) if is_whole and rows == len(head) == 1 else ""
        return FirstNames(places=places, rows=rows, is_whole=is_whole, advice=advice)

    def refine(self, columns: Columns) -> Columns:
        """Return `columns` with what requests want, and with the kind of turns and of messages."""
        first = next(iter(self._head), {})
        if columns.shape == "openai-batch":
            column = columns.text or ""
            columns = dataclasses.replace(
                columns,
                model=read_model(first, column),
                choices=read_choices(first, column),
                logprobs=any(wants_logprobs(record, column) for record in self._head),
            )
        turns = columns.turns if columns.shape is None else None
        if turns is not None and has_messages(first.get(turns)):
            columns = dataclasses.replace(columns, shape=TURNS_OF_MESSAGES)
        if columns.message_fields is None and columns.messages is not None:
            name = columns.messages
            is_batch = columns.shape == "openai-batch"
            found = any(
                has_calls(record, name) if is_batch else has_other_fields(record.get(name))
                for record in self._head
            )
            columns = dataclasses.replace(columns, message_fields=found)
        self._head = []
        return columns

    def peek(self, count: int) -> list[dict[str, Any]]:
        faults, records = FaultList(), []
        with report_unreadable(self._shown), open_lines(self._path) as file:
            for line in islice(self._iterate_lines(file), count):
                try:
                    records.append(dict(parse_line(line)[0]))
                except RowFault as fault:
                    faults.add(f"{self._shown}:{line.number}", str(fault))
        faults.raise_if_any()
        return records

    def read_column(self, name: str) -> Iterator[tuple[int, Any]]:
        """Yield line and value of each record; see `FileSource.read_column`."""
        self._watched.begin_scan()
        with report_unreadable(self._shown), open_lines(self._path) as file:
            for line in self._iterate_lines(file):
                try:
                    record, _ = parse_line(line)
                except RowFault as fault:
                    raise InputRefused([f"{self._shown}:{line.number}: {fault}"]) from fault
                yield line.number, record.get(name)
        self._watched.end_scan()

    def scan_into(self, input_scan: InputScan) -> FileScan:
        size = self._watched.begin_scan()
        input_scan.note_json(self._shown)
        scanner = _Scanner(self._shown, input_scan)
        with report_unreadable(self._shown), open_lines(self._path) as file:
            for line in islice(self._iterate_lines(file), input_scan.wanted):
                scanner.take(line)
        self._watched.end_scan()
        return FileScan(rows=scanner.rows, size=size, checkpoints=tuple(scanner.checkpoints))

    def _iterate_rows(self, scan: Scan, first: int) -> Iterator[Row]:
        """Yield every row from `first` on, starting at the checkpoint before it."""
        step, skip = divmod(first, CHECKPOINT_ROWS)
        checkpoint = scan.checkpoints[step]
        reader = _RowReader(self._shown, scan)
        with report_unreadable(self._shown), open_lines(self._path) as file:
            if checkpoint.offset:
                file.seek(checkpoint.offset - 1)
                if file.read(1) != b"\n":
                    raise changed(self._shown, f"no line starts at byte {checkpoint.offset}")
            lines = islice(self._iterate_lines(file, checkpoint), skip, scan.rows - first + skip)
            index = first
            for index, line in enumerate(lines, start=first):
                yield reader.read(line, index)
            if index != scan.rows - 1:
                raise changed(self._shown, f"{index + 1} rows instead of {scan.rows}")

    def _iterate_lines(self, file: BinaryIO, start: Checkpoint = START) -> Iterator[Line]:
        return iterate_lines(file, start, self._max_row_bytes)


class _Scanner:
    def __init__(self, shown: Path | str, input_scan: InputScan) -> None:
        self.rows = 0
        self.checkpoints: list[Checkpoint] = []
        self._shown = shown
        self._input_scan = input_scan
        self._columns = input_scan.columns
        self._parser = input_scan.parser

    def take(self, line: Line) -> None:
        """Check one line and add its hash."""
        if self.rows % CHECKPOINT_ROWS == 0:
            self.checkpoints.append(Checkpoint(offset=line.offset, line=line.number))
        self.rows += 1
        record: Mapping[str, Any] = {}
        try:
            record, text = parse_line(line)
            self._input_scan.note_names(record, self._shown, line.number)
            self._input_scan.index.add(self._check(record, text))
        except RowFault as fault:
            place = f"{self._shown}:{line.number}"
            if self._input_scan.add_fault(place, fault):
                identifier = record.get(self._columns.id or "")
                self._input_scan.index.add(self._parser.hash_bad(identifier, line.number))
        self._input_scan.count(1)

    def _check(self, record: Mapping[str, Any], text: str) -> bytes:
        columns = self._columns
        if may_hold_surrogates(text):
            _check_encodable(record, columns)
        found = self._parser.hash_record(_get_values(record, columns))
        if columns.keep:
            self._input_scan.kinds.take(record)
        return found


class _RowReader:
    """Converts lines that a scan has checked to rows."""

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
        """Return the row of `line`. Raises IntegrityError if it is not the line that was scanned."""
        record: Mapping[str, Any] = {}
        try:
            record, text = parse_line(line)
            if may_hold_surrogates(text):
                _check_encodable(record, self._columns)
            return self._parser.make_row(
                _get_values(record, self._columns),
                index=index,
                occurrence=self._number(index),
                kept=convert_kept(record, self._columns.keep, self._kept) if self._kept else {},
                line=line.number,
            )
        except RowFault as fault:
            if self._columns.bad_rows == "fail":
                return self._parser.make_bad_row(
                    str(fault),
                    record.get(self._columns.id or ""),
                    index=index,
                    occurrence=self._number(index),
                    line=line.number,
                )
            raise changed(self._shown, f"line {line.number}: {fault}") from fault

    def _number(self, index: int) -> int:
        if not 0 <= index - self._numbers_start < len(self._numbers):
            stop = min(index + CHECKPOINT_ROWS, self._rows)
            self._numbers = self._duplicates.list_numbers(index, stop)
            self._numbers_start = index
        return self._numbers[index - self._numbers_start]


def _get_values(record: Mapping[str, Any], columns: Columns) -> Values:
    """Return the values of a row; its text and id must exist.

    The text is the whole record if it is composed of several columns.
    """
    try:
        text = record if columns.template is not None or columns.reads else record[columns.text or ""]
        identifier = record[columns.id] if columns.id is not None else None
    except KeyError as exc:
        raise RowFault(f"there is no {exc.args[0]!r} in this row") from exc

    def find(name: str | None) -> Any:
        return record.get(name) if name is not None else None

    return Values(text, find(columns.system), identifier, find(columns.sampling), find(columns.tools))


def _check_encodable(record: Mapping[str, Any], columns: Columns) -> None:
    for name in columns.used:
        check_encodable(name, record.get(name))
