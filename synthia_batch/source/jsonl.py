"""JSONL: one JSON object per line, read by lines with their byte offsets."""

import codecs
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from synthia_batch.errors import InputRefused
from synthia_batch.rows import Row
from synthia_batch.source.base import CHECKPOINT_ROWS, PROGRESS_ROWS, Checkpoint, Columns, Scan, Selection
from synthia_batch.source.columns import require_columns, resolve_columns
from synthia_batch.source.cursors import Cursors
from synthia_batch.source.faults import FaultList, RowFault
from synthia_batch.source.files import Watched, changed, report_unreadable
from synthia_batch.source.ids import HashIndex, find_duplicates
from synthia_batch.source.kept_json import KindTracker, convert_kept
from synthia_batch.source.messages import describe
from synthia_batch.source.record import RecordParser, Values
from synthia_batch.source.strict_json import check_encodable, may_hold_surrogates, parse_json

MAX_LINE_BYTES = 64 * 1024 * 1024
"""One record of over 64 MiB is a file of another format, or one that lost its line ends."""

READ_BUFFER_BYTES = 1024 * 1024


class Line(NamedTuple):
    """A line that is not blank. `content` is None where it is longer than a line may be."""

    number: int
    offset: int
    content: bytes | None


class JsonlSource:
    """A JSONL file. Blank lines and a byte order mark at its start are passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched = Watched(path)
        self._cursors = Cursors()

    @property
    def path(self) -> Path:
        """The file, as the user named it."""
        return self._path

    def detect(self, selection: Selection) -> Columns:
        """Return the columns, by the first record that can be read; see `Source.detect`."""
        faults = FaultList()
        with report_unreadable(self._path), _open(self._path) as file:
            for line in islice(_iterate_lines(file, Checkpoint(offset=0, line=1)), selection.limit):
                try:
                    record, _ = parse_line(line)
                except RowFault as fault:
                    faults.add(f"{self._path}:{line.number}", str(fault))
                else:
                    return resolve_columns(selection, tuple(record), self._path)
        faults.raise_if_any()
        raise _refuse_blank(self._path)

    def peek(self, count: int) -> list[dict[str, Any]]:
        """Return the first records; see `Source.peek`."""
        faults, records = FaultList(), []
        with report_unreadable(self._path), _open(self._path) as file:
            for line in islice(_iterate_lines(file, Checkpoint(offset=0, line=1)), count):
                try:
                    records.append(dict(parse_line(line)[0]))
                except RowFault as fault:
                    faults.add(f"{self._path}:{line.number}", str(fault))
        faults.raise_if_any()
        return records

    def scan(
        self, selection: Selection, scratch: Path, on_progress: Callable[[int], None] | None = None
    ) -> Scan:
        """Check every selected row in one pass; see `Source.scan`."""
        size = self._watched.begin_scan()
        with HashIndex(scratch) as index, report_unreadable(self._path), _open(self._path) as file:
            scanner = _Scanner(self._path, selection, index)
            for line in islice(_iterate_lines(file, Checkpoint(offset=0, line=1)), selection.limit):
                scanner.take(line)
                if on_progress and scanner.rows % PROGRESS_ROWS == 0:
                    on_progress(scanner.rows)
            scan = scanner.finish(size)
        self._watched.end_scan()
        if on_progress:
            on_progress(scan.rows)
        if scan.columns.id is not None:
            self._refuse_duplicates(scan)
        return scan

    def read_rows(self, scan: Scan, first: int, stop: int) -> Iterator[Row]:
        """Yield the rows `first` to `stop` (excluded); see `Source.read_rows`."""
        self._watched.check(scan.size)
        return self._cursors.read(scan, first, min(stop, scan.rows), self._iterate_rows)

    def _iterate_rows(self, scan: Scan, first: int) -> Iterator[Row]:
        """Yield every row from `first` on, from the checkpoint before it."""
        step, skip = divmod(first, CHECKPOINT_ROWS)
        checkpoint = scan.checkpoints[step]
        reader = _RowReader(self._path, scan)
        with report_unreadable(self._path), _open(self._path) as file:
            if checkpoint.offset:
                file.seek(checkpoint.offset - 1)
                if file.read(1) != b"\n":
                    raise changed(self._path, f"no line starts at byte {checkpoint.offset}")
            lines = islice(_iterate_lines(file, checkpoint), skip, scan.rows - first + skip)
            index = first
            for index, line in enumerate(lines, start=first):
                yield reader.read(line, index)
            if index != scan.rows - 1:
                raise changed(self._path, f"{index + 1} rows instead of {scan.rows}")

    def _refuse_duplicates(self, scan: Scan) -> None:
        faults = FaultList()
        for pair in find_duplicates(scan.occurrences, lambda first, stop: self.read_rows(scan, first, stop)):
            earlier = f"{self._path}:{pair.first.line}"
            faults.add(
                f"{self._path}:{pair.second.line}",
                f"the id {pair.second.id[:200]!r} was used before, at {earlier}",
            )
        faults.raise_if_any()


class _Scanner:
    """The state of one pass."""

    def __init__(self, path: Path, selection: Selection, index: HashIndex) -> None:
        self.rows = 0
        self._path = path
        self._selection = selection
        self._index = index
        self._faults = FaultList()
        self._checkpoints: list[Checkpoint] = []
        self._names: tuple[str, ...] = ()
        self._columns: Columns | None = None

    def take(self, line: Line) -> None:
        """Check one line and note its hash."""
        if self.rows % CHECKPOINT_ROWS == 0:
            self._checkpoints.append(Checkpoint(offset=line.offset, line=line.number))
        self.rows += 1
        try:
            record, text = parse_line(line)
            if self._columns is None:
                self._begin(record)
            self._index.add(self._check(record, text))
        except RowFault as fault:
            self._faults.add(f"{self._path}:{line.number}", str(fault))

    def finish(self, size: int) -> Scan:
        """Return what the pass found, or refuse the input."""
        self._faults.raise_if_any()
        if self._columns is None:
            raise _refuse_blank(self._path)
        require_columns(sorted(self._unseen), self._names, self._path)
        return Scan(
            rows=self.rows,
            size=size,
            columns=self._columns,
            kept=self._kinds.resolve(),
            checkpoints=tuple(self._checkpoints),
            occurrences=self._index.finish(self.rows),
        )

    def _begin(self, record: Mapping[str, Any]) -> None:
        """Settle the columns by the first record."""
        self._names = tuple(record)
        self._columns = columns = resolve_columns(self._selection, self._names, self._path)
        self._parser = RecordParser(columns)
        self._kinds = KindTracker(columns.keep)
        # The others are optional in a row, but not in all of them: that is a misspelt name.
        optional = (columns.system, columns.sampling, columns.tools, *columns.keep)
        self._unseen = {name for name in optional if name is not None}

    def _check(self, record: Mapping[str, Any], text: str) -> bytes:
        columns = self._columns
        if columns is None:
            raise ValueError("a record is checked once the columns are known")
        if self._unseen:
            self._unseen -= record.keys()
        if may_hold_surrogates(text):
            _check_encodable(record, columns)
        if columns.keep:
            self._kinds.take(record)
        return self._parser.hash_record(_get_values(record, columns))


class _RowReader:
    """Makes rows of lines that a scan has checked."""

    def __init__(self, path: Path, scan: Scan) -> None:
        self._path = path
        self._columns = scan.columns
        self._kept = scan.kept
        self._parser = RecordParser(scan.columns)
        self._occurrences = scan.occurrences
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
            raise changed(self._path, f"line {line.number}: {fault}") from fault

    def _number(self, index: int) -> int:
        if not 0 <= index - self._numbers_start < len(self._numbers):
            stop = min(index + CHECKPOINT_ROWS, self._rows)
            self._numbers = self._occurrences.list_numbers(index, stop)
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


def _get_values(record: Mapping[str, Any], columns: Columns) -> Values:
    """Return the values of the columns that make a row; text and id must be there."""
    try:
        text = record[columns.text]
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


def _refuse_blank(path: Path) -> InputRefused:
    return InputRefused([f"{path}: there are no rows, only blank lines"])


def _open(path: Path) -> BinaryIO:
    return path.open("rb", buffering=READ_BUFFER_BYTES)
