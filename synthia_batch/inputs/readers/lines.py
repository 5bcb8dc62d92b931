"""The lines of a JSONL file, with their byte offsets, and the object of each."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from synthia_batch.core.types import MAX_ROW_BYTES
from synthia_batch.inputs.base import Checkpoint
from synthia_batch.inputs.records.faults import REWRITE_LISTS, RowFault, describe_long_row
from synthia_batch.inputs.records.message_parts import describe
from synthia_batch.inputs.records.strict_json import parse_json

READ_BUFFER_BYTES = 1024 * 1024


class Line(NamedTuple):
    """A line that is not blank. `content` is None if it exceeds `max_bytes`."""

    number: int
    offset: int
    content: bytes | None
    max_bytes: int = MAX_ROW_BYTES


def parse_line(line: Line) -> tuple[dict[str, Any], str]:
    """Return the object of a line, and the line's text.

    Raises:
        RowFault: The line is too long, or not UTF-8, or not one JSON object.
    """
    if line.content is None:
        raise RowFault(f"{describe_long_row(line.max_bytes)}; is this JSONL?")
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
        hint = f". {REWRITE_LISTS}" if isinstance(record, list) else ""
        raise RowFault(f"a line must be a JSON object, not {describe(record)}{hint}")
    return record, text


def _hint_truncated(content: bytes) -> str:
    return "" if content.endswith(b"\n") else "; the file ends inside this line and is probably truncated"


def iterate_lines(file: BinaryIO, start: Checkpoint, max_bytes: int = MAX_ROW_BYTES) -> Iterator[Line]:
    """Yield the lines of `file` that are not blank; its position is `start`."""
    offset, number = start.offset, start.line
    while content := file.readline(max_bytes + 1):
        size = len(content)
        if size > max_bytes and not content.endswith(b"\n"):
            size += _skip_line(file)
            yield Line(number, offset, None, max_bytes)
        elif not content.isspace():
            if offset == 0 and content.startswith(codecs.BOM_UTF8):
                content = content[len(codecs.BOM_UTF8) :]
            if not content.isspace() and content:
                yield Line(number, offset, content)
        offset += size
        number += 1


def _skip_line(file: BinaryIO) -> int:
    """Skip to the next line, and return the number of bytes skipped."""
    size = 0
    while content := file.readline(READ_BUFFER_BYTES):
        size += len(content)
        if content.endswith(b"\n"):
            break
    return size


def open_lines(path: Path) -> BinaryIO:
    return path.open("rb", buffering=READ_BUFFER_BYTES)
