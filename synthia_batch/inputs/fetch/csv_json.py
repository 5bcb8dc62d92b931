"""Rewrites CSV, TSV and JSON lists as JSON lines with usable line numbers.

A CSV record is written to the line on which it begins in the original, so that file:line in messages
refers to the user's file. The records of a JSON list are on the lines 1, 2, 3, ...
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


class ByteReader(Protocol):
    """A file that is read in chunks or by lines."""

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""

    def __iter__(self) -> Iterator[bytes]:
        """Return an iterator over the lines."""


def write_csv_lines(source: ByteReader, target: BinaryIO, shown: Path | str, delimiter: str = ",") -> None:
    """Write each record of a CSV text as a line of JSON; the first record names the columns.

    All values are text. Blank lines are skipped.
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


def write_tsv_lines(source: ByteReader, target: BinaryIO, shown: Path | str) -> None:
    """Write each record of a tab-separated text as a line of JSON; see `write_csv_lines`."""
    write_csv_lines(source, target, shown, "\t")


def write_json_lines(source: ByteReader, target: BinaryIO, shown: Path | str) -> None:
    """Write each object of a JSON list as a line.

    Raises:
        InputRefused: It is not a list of objects, or an object has faults.
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
    """Decodes line by line, so that a line that is not UTF-8 can be reported by its number."""

    def __init__(self, source: ByteReader) -> None:
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
            raise RowFault(f"the column {name!r} appears twice; rename one of them")
        if not name or name.isspace():
            raise RowFault("a column has no name; the first line must name every column")
    return record


def _write_record(names: Sequence[str], record: list[str]) -> bytes:
    if len(record) != len(names):
        raise RowFault(
            f"expected {len(names)} fields as in the first line, got {len(record)}; is a quote missing?"
        )
    return json.dumps(dict(zip(names, record, strict=True)), ensure_ascii=False).encode() + b"\n"


def _describe(exc: Exception, first_line: int) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return f"not valid UTF-8: byte {exc.start + 1} of the line is 0x{exc.object[exc.start]:02x}"
    if "unexpected end of data" in str(exc):
        return f"the file ends inside a quoted field; the record begins on line {first_line}"
    if "new-line character" in str(exc):
        return "a carriage return without a line feed; save the file with ordinary line ends"
    return f"not valid CSV: {exc}; the record begins on line {first_line}"


def _iterate_items(source: ByteReader) -> Iterator[str]:
    """Yield the text of each entry of a list; one entry and one chunk of the file are in memory."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    chunks = iter(lambda: source.read(READ_CHARACTERS), b"")
    scanner = json.JSONDecoder()
    text, at, is_open, needs_comma, is_over = "", 0, False, False, False
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if at == len(text):
            if (more := next(chunks, None)) is None:
                if is_over:
                    return
                raise RowFault("the file ends inside the list")
            text, at = decoder.decode(more), 0
            continue
        mark = text[at]
        if is_over:
            raise RowFault("unexpected content after the list")
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
            text, at, end = _find_end(scanner, text, at, decoder, chunks)
            yield text[at:end]
            at, needs_comma = end, True


def _find_end(
    scanner: json.JSONDecoder, text: str, at: int, decoder: Any, chunks: Iterator[bytes]
) -> tuple[str, int, int]:
    """Return `text` extended by as many chunks as the entry at `at` takes, and its start and end in it."""
    while True:
        wanted = 1
        try:
            _, end = scanner.raw_decode(text, at)
            if end < len(text):  # A number at the end of a chunk may continue in the next.
                return text, at, end
            fault = None
        except (RecursionError, ValueError) as exc:
            fault, wanted = exc, len(text) - at
        more = "".join(decoder.decode(chunk) for chunk in _take(chunks, wanted))
        if not more and fault is not None:
            raise RowFault(str(fault)) from fault
        if not more:
            return text, at, len(text)
        text, at = text[at:] + more, 0


def _take(chunks: Iterator[bytes], wanted: int) -> Iterator[bytes]:
    """Yield chunks of `wanted` bytes together, or the rest.

    The caller doubles its text each time, so that parsing a long entry repeatedly stays linear.
    """
    taken = 0
    while taken < wanted and (chunk := next(chunks, None)) is not None:
        yield chunk
        taken += len(chunk)
