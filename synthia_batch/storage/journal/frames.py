r"""The codec of append-only files: one line per frame, `crc32 length json\n`.

The CRC (8 lower-case hex digits) and the length (decimal, bytes) are of the JSON text. That text contains
no raw newline, so damage never spreads beyond the next newline. Each JSON text has exactly one valid line,
and CRC-32 detects every single-bit error, so no flipped bit yields another valid frame.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

_encode_json = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
_decode_json = json.JSONDecoder().raw_decode


class Frame(NamedTuple):
    """A line of the file, from byte `offset` up to `stop`. `value` is None if it is damaged."""

    offset: int
    stop: int
    value: dict[str, Any] | None


def encode_frame(value: Mapping[str, Any]) -> bytes:
    return _make_line(_encode_json(value).encode())


def scan_frames(file: BinaryIO) -> Iterator[Frame]:
    """Yield every frame of `file`, valid or damaged, from its current position, which is offset 0.

    Keeps one line in memory at a time. A last frame without its newline is damaged.
    """
    offset = 0
    for line in file:
        stop = offset + len(line)
        yield Frame(offset, stop, decode_line(line))
        offset = stop


def _make_line(body: bytes) -> bytes:
    return b"%08x %d %b\n" % (zlib.crc32(body), len(body), body)


def decode_line(line: bytes) -> dict[str, Any] | None:
    """Return the value of a whole line, None if the line is damaged."""
    body = line[line.find(b" ", 9) + 1 : -1]
    # Re-encoded and compared whole: "0A" for "0a" or "012" for "12" is damage, too.
    if line != _make_line(body):
        return None
    try:
        value, _ = _decode_json(body.decode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
