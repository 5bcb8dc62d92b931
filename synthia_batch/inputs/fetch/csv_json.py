"""CSV and lists of JSON, written as JSON lines that keep their place.

A CSV record stands on the line of the copy on which it begins in the file, so that file:line means the
file. Of a JSON list, the first record is line 1, the second line 2.
"""

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from synthia_batch.inputs.records.faults import FaultList, RowFault
from synthia_batch.inputs.records.strict_json import parse_json

MAX_FIELD_CHARACTERS = 64 * 1024 * 1024
READ_CHARACTERS = 1024 * 1024
_BOM = "\ufeff"


class Pieces(Protocol):
    """A file as it is read here: by pieces, or by lines."""

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""

    def __iter__(self) -> Iterator[bytes]:
        """Return what yields the lines."""


def write_csv_lines(source: Pieces, target: BinaryIO, shown: Path | str, delimiter: str) -> None:
    """Write each record of a CSV text, whose first one names the columns, as a line of JSON.

    All values are text. Blank lines are passed over.

    Raises:
        InputRefused: Records have faults; up to ten are named.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    faults = FaultList()
    lines = _Lines(source)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: Sequence[str] | None = None
    written = 0
    while True:
        before = reader.line_num
        try:
            record = next(reader, None)
        except (csv.Error, UnicodeDecodeError) as exc:
            # What follows a broken quote cannot be told from what is in it: no use in going on.
            faults.add(f"{shown}:{max(lines.number, 1)}", _describe(exc, before + 1))
            break
        if record is None:
            break
        line = before + 1  # A blank line is a record of its own here, without fields.
        if not record:
            continue
        try:
            if names is None:
                names = _read_header(record)
                continue
            text = _write_record(names, record)
        except RowFault as fault:
            faults.add(f"{shown}:{line}", str(fault))
            if names is None:
                break
            continue
        target.write(b"\n" * (line - written - 1) + text)
        written = line
    faults.raise_if_any()


def write_json_lines(source: Pieces, target: BinaryIO, shown: Path | str) -> None:
    """Write each object of a JSON list as a line.

    Raises:
        InputRefused: It is no list of objects, or an object has faults.
    """
    faults = FaultList()
    try:
        for number, text in enumerate(_iterate_items(source), start=1):
            try:
                value = parse_json(text)
                if type(value) is not dict:
                    raise RowFault("an entry of the list must be an object")
                target.write(json.dumps(value, ensure_ascii="\\u" in text).encode() + b"\n")
            except RowFault as fault:
                faults.add(f"{shown}:{number}", str(fault))
    except (RowFault, UnicodeDecodeError) as fault:
        faults.add(str(shown), f"not a JSON list of objects: {fault}")
    faults.raise_if_any()


class _Lines:
    """The lines of a text, decoded one by one, so that one that is no UTF-8 can be named."""

    def __init__(self, source: Pieces) -> None:
        self._source = source
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        for content in self._source:
            self.number += 1
            text = content.decode()
            yield text.removeprefix(_BOM) if self.number == 1 else text


def _read_header(record: list[str]) -> list[str]:
    for name in record:
        if record.count(name) > 1:
            raise RowFault(f"the column {name!r} is there twice; rename one of them")
        if not name or name.isspace():
            raise RowFault("a column has no name; the first line must name them all")
    return record


def _write_record(names: Sequence[str], record: list[str]) -> bytes:
    if len(record) != len(names):
        raise RowFault(
            f"{len(record)} fields where the first line names {len(names)} columns; is a quote missing?"
        )
    return json.dumps(dict(zip(names, record, strict=True)), ensure_ascii=False).encode() + b"\n"


def _describe(exc: Exception, first_line: int) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return f"not valid UTF-8: byte {exc.start + 1} of the line is 0x{exc.object[exc.start]:02x}"
    if "unexpected end of data" in str(exc):
        return f"the file ends within a quoted field; the record begins on line {first_line}"
    if "new-line character" in str(exc):
        return "a carriage return stands alone; save the file with ordinary line ends"
    return f"not valid CSV: {exc}; the record begins on line {first_line}"


def _iterate_items(source: Pieces) -> Iterator[str]:
    """Yield the texts of a list's entries, holding no more than one and a piece of the file."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    pieces = iter(lambda: source.read(READ_CHARACTERS), b"")
    scanner = json.JSONDecoder()
    text, at, is_open, needs_comma, is_over = "", 0, False, False, False
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if at == len(text):
            if (more := next(pieces, None)) is None:
                if is_over:
                    return
                raise RowFault("the file ends within the list")
            text, at = decoder.decode(more), 0
            continue
        mark = text[at]
        if is_over:
            raise RowFault("something follows the list")
        if not is_open:
            if mark != "[":
                raise RowFault("it does not begin with [")
            is_open, at = True, at + 1
        elif mark == "]":
            is_over, at = True, at + 1
        elif needs_comma:
            if mark != ",":
                raise RowFault("a comma is missing between two entries")
            needs_comma, at = False, at + 1
        else:
            text, at, end = _find_end(scanner, text, at, decoder, pieces)
            yield text[at:end]
            at, needs_comma = end, True


def _find_end(
    scanner: json.JSONDecoder, text: str, at: int, decoder: Any, pieces: Iterator[bytes]
) -> tuple[str, int, int]:
    """Return `text` from where an entry begins, with as much more as it takes: where it begins and ends."""
    while True:
        wanted = 1
        try:
            _, end = scanner.raw_decode(text, at)
            if end < len(text):  # A number that ends with the piece may go on.
                return text, at, end
            fault = None
        except (RecursionError, ValueError) as exc:
            fault, wanted = exc, len(text) - at
        more = "".join(decoder.decode(piece) for piece in _take(pieces, wanted))
        if not more and fault is not None:
            raise RowFault(str(fault)) from fault
        if not more:
            return text, at, len(text)
        text, at = text[at:] + more, 0


def _take(pieces: Iterator[bytes], wanted: int) -> Iterator[bytes]:
    """Yield pieces of so many bytes together, or what is left: each time as much again as was not enough."""
    taken = 0
    while taken < wanted and (piece := next(pieces, None)) is not None:
        yield piece
        taken += len(piece)
