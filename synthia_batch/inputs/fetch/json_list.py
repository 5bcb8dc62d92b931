"""Rewrites JSON lists as JSON lines: the entries of a list are on the lines 1, 2, 3, ..."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from synthia_batch.inputs.records.faults import REWRITE_LISTS, FaultList, RowFault, describe_long_row
from synthia_batch.inputs.records.strict_json import parse_json

READ_CHARACTERS = 1024 * 1024
_BEHIND = "unexpected content after the list"


class ByteReader(Protocol):
    """A file that is read in chunks or by lines."""

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""

    def readline(self, size: int = -1) -> bytes:
        """Return the next line, of at most `size` bytes."""


def write_json_lines(source: ByteReader, target: BinaryIO, shown: Path | str, max_row_bytes: int) -> str:
    """Write each object of a JSON list as a line.

    Raises:
        InputRefused: It is not a list of objects, or an object has faults or over `max_row_bytes`.
    """
    faults = FaultList()
    try:
        for number, text in enumerate(_iterate_items(source, max_row_bytes), start=1):
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
    return ""


def _iterate_items(source: ByteReader, max_row_bytes: int) -> Iterator[str]:
    """Yield the text of each entry of a list; one entry and one chunk of the file are in memory."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    chunks = iter(lambda: source.read(READ_CHARACTERS), b"")
    scanner = json.JSONDecoder()
    text, at, is_open, needs_comma, is_over = "", 0, False, False, False
    number = 0
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
            raise RowFault(f"unexpected content after the list. {REWRITE_LISTS}" if mark == "[" else _BEHIND)
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
            number += 1
            try:
                text, at, end = _find_end(scanner, text, at, decoder, chunks, max_row_bytes)
            except OverflowError:
                raise RowFault(f"entry {number}: {describe_long_row(max_row_bytes)}") from None
            yield text[at:end]
            at, needs_comma = end, True


def _find_end(
    scanner: json.JSONDecoder, text: str, at: int, decoder: Any, chunks: Iterator[bytes], max_row_bytes: int
) -> tuple[str, int, int]:
    """Return `text` extended by as many chunks as the entry at `at` takes, and its start and end in it.

    Raises OverflowError if that is over `max_row_bytes`.
    """
    while True:
        wanted = 1
        try:
            _, end = scanner.raw_decode(text, at)
            if end < len(text):  # A number at the end of a chunk may continue in the next.
                if _has_over(text, at, end, max_row_bytes):
                    raise OverflowError
                return text, at, end
            fault = None
        except (RecursionError, ValueError) as exc:
            fault, wanted = exc, len(text) - at
        if _has_over(text, at, len(text), max_row_bytes):
            raise OverflowError
        more = "".join(decoder.decode(chunk) for chunk in _take(chunks, min(wanted, max_row_bytes)))
        if not more and fault is not None:
            raise RowFault(str(fault)) from fault
        if not more:
            return text, at, len(text)
        text, at = text[at:] + more, 0


def _has_over(text: str, at: int, end: int, limit_bytes: int) -> bool:
    """Return whether a part of `text` has more bytes than the limit as UTF-8, of up to 4 a character."""
    length = end - at
    return length > limit_bytes or (length * 4 > limit_bytes and len(text[at:end].encode()) > limit_bytes)


def _take(chunks: Iterator[bytes], wanted: int) -> Iterator[bytes]:
    """Yield chunks of `wanted` bytes together, or the rest.

    The caller doubles its text each time, so that parsing a long entry repeatedly stays linear.
    """
    taken = 0
    while taken < wanted and (chunk := next(chunks, None)) is not None:
        yield chunk
        taken += len(chunk)
