"""Rewrites CSV and TSV as JSON lines with usable line numbers.

A record is written to the line on which it begins in the original, so that file:line in messages refers to
the user's file.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from synthia_batch.inputs.fetch.json_list import ByteReader
from synthia_batch.inputs.records.faults import FaultList, RowFault, describe_long_row

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What can separate fields, with its name in messages. Of equals the first is taken."""
SAMPLE_BYTES = 64 * 1024
"""The separator is chosen by as much of the file."""
_BOM = "\ufeff"
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')
"""A first line by which Excel names the separator."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def write_csv_lines(source: ByteReader, target: BinaryIO, shown: Path | str, max_row_bytes: int) -> str:
    """Write each record of a CSV text as a line of JSON; the first record names the columns.

    All values are text. Blank lines are skipped. Returns which separator was found, if it is no comma.
    """
    lines = _Lines(source, max_row_bytes)
    separator = _choose_separator(lines)
    _write_records(lines, target, shown, separator)
    return "" if separator == "," else f"the fields are separated by {_name(separator)}"


def write_tsv_lines(source: ByteReader, target: BinaryIO, shown: Path | str, max_row_bytes: int) -> str:
    """Write each record of a tab-separated text as a line of JSON; see `write_csv_lines`."""
    _write_records(_Lines(source, max_row_bytes), target, shown, "\t")
    return ""


def read_header(record: Sequence[str], place: str = "line") -> Sequence[str]:
    """Return the names of the columns, of the first record. Raises RowFault if one is blank or repeated."""
    for name in record:
        if record.count(name) > 1:
            raise RowFault(f"the column {name!r} appears twice; rename one of them")
        if not name or name.isspace():
            raise RowFault(f"a column has no name; the first {place} must name every column")
    return record


class _Lines:
    """Decodes line by line, so that a line that is not UTF-8 can be reported by its number.

    `row_bytes` counts the bytes of a record, which is refused before more than the limit is in memory.
    """

    def __init__(self, source: ByteReader, max_row_bytes: int) -> None:
        self.number = 0
        self.row_bytes = 0
        self.is_whole = False
        self.max_row_bytes = max_row_bytes
        self._source = source
        self._ahead: list[bytes] = []

    def look_ahead(self) -> list[str]:
        """Return the lines of the sample; they are read again by the iteration."""
        size = 0
        while size < SAMPLE_BYTES and (line := self._source.readline(self.max_row_bytes + 1)):
            self._ahead.append(line)
            size += len(line)
        self.is_whole = size < SAMPLE_BYTES
        return [line.decode(errors="replace").removeprefix(_BOM) for line in self._ahead]

    def replace_first(self, line: bytes) -> None:
        self._ahead[0] = line

    def __iter__(self) -> Iterator[str]:
        while content := self._read():
            self.number += 1
            self.row_bytes += len(content)
            if self.row_bytes > self.max_row_bytes:
                raise RowFault(f"{describe_long_row(self.max_row_bytes)}; is a quote not closed?")
            text = content.decode()
            yield text.removeprefix(_BOM) if self.number == 1 else text

    def _read(self) -> bytes:
        return self._ahead.pop(0) if self._ahead else self._source.readline(self.max_row_bytes + 1)


def _choose_separator(lines: _Lines) -> str:
    """Return the separator by which the records of the sample have equally many fields, the most of any."""
    sample = lines.look_ahead()
    named = _EXCEL_SEPARATOR.fullmatch(sample[0]) if sample else None
    if named is not None:
        lines.replace_first(b"\n")
        return named[1]
    widths = {separator: _measure(sample, separator) for separator in SEPARATORS}
    if not lines.is_whole:  # The last record may go on behind the sample.
        widths = {separator: found[: max(1, len(found) - 1)] for separator, found in widths.items()}
    equal = {key: found[0] for key, found in widths.items() if len(set(found)) == 1 and found[0] > 1}
    if equal:
        return max(equal, key=lambda key: equal[key])
    # No record fits the first: it is split as most of its separators say, which the message then names.
    return max(SEPARATORS, key=lambda key: widths[key][0] if max(widths[key][1:], default=0) > 1 else 1)


def _measure(sample: Sequence[str], separator: str) -> list[int]:
    """Return the number of fields of each record; [1] if it cannot be read as CSV."""
    try:
        return [len(record) for record in csv.reader(sample, delimiter=separator) if record] or [1]
    except csv.Error:
        return [1]


def _write_records(lines: _Lines, target: BinaryIO, shown: Path | str, separator: str) -> None:
    csv.field_size_limit(lines.max_row_bytes)
    faults = FaultList()
    reader = csv.reader(lines, delimiter=separator, strict=True)
    names: Sequence[str] | None = None
    written = 0
    while True:
        before = reader.line_num
        lines.row_bytes = 0
        try:
            record = next(reader, None)
        except RowFault as fault:
            faults.add(f"{shown}:{before + 1}", str(fault))
            break
        except (csv.Error, UnicodeDecodeError) as exc:
            # After a broken quote nothing can be parsed reliably.
            faults.add(f"{shown}:{max(lines.number, 1)}", _describe(exc, before + 1))
            break
        if record is None:
            break
        line = before + 1  # The csv module returns a blank line as a record without fields.
        if not record:
            continue
        try:
            if names is None:
                names = read_header(record)
                continue
            text = _write_record(names, record, separator)
        except RowFault as fault:
            faults.add(f"{shown}:{line}", str(fault))
            if names is None:
                break
            continue
        target.write(b"\n" * (line - written - 1) + text)
        written = line
    faults.raise_if_any()


def _write_record(names: Sequence[str], record: list[str], separator: str) -> bytes:
    if len(record) != len(names):
        raise RowFault(
            f"expected {len(names)} fields as in the first line, got {len(record)}, separated by "
            f"{_name(separator)}; is a quote missing?"
        )
    return json.dumps(dict(zip(names, record, strict=True)), ensure_ascii=False).encode() + b"\n"


def _name(separator: str) -> str:
    return SEPARATORS.get(separator, repr(separator))


def _describe(exc: Exception, first_line: int) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return _describe_encoding(exc, is_first=first_line == 1)
    if "unexpected end of data" in str(exc):
        return f"the file ends inside a quoted field; the record begins on line {first_line}"
    if "new-line character" in str(exc):
        return "a carriage return without a line feed; save the file with ordinary line ends"
    return f"not valid CSV: {exc}; the record begins on line {first_line}"


def _describe_encoding(exc: UnicodeDecodeError, *, is_first: bool) -> str:
    """Return the fault of a line that is not UTF-8, with its text in the likeliest encoding."""
    if is_first and exc.object.startswith(_UTF_16):
        return "the file is UTF-16; save it as UTF-8, or convert it: `iconv -f UTF-16 -t UTF-8 OLD > NEW`"
    around = exc.object[max(0, exc.start - 15) : exc.start + 15].decode("cp1252", errors="replace")
    return (
        f"not valid UTF-8: byte {exc.start + 1} of the line is 0x{exc.object[exc.start]:02x}; as Windows "
        f"text it is {around.strip()!r}: if that is right, save the file as UTF-8, or convert it: "
        "`iconv -f CP1252 -t UTF-8 OLD > NEW`"
    )
