r"""The codec of append-only files: one line per frame, `crc32 length json\n`.

The CRC (8 lower-case hex digits) and the length (decimal, bytes) are of the JSON text. That text
holds no raw newline, so damage never spreads beyond the next newline. Exactly one line is right
for a given JSON text, and CRC-32 changes with every single-bit error, so no flipped bit yields
another valid frame.
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
    """A line of the file, from byte `offset` up to `stop`. `value` is None where it is damaged."""

    offset: int
    stop: int
    value: dict[str, Any] | None


def encode_frame(value: Mapping[str, Any]) -> bytes:
    """Return the line for `value`.

    Raises:
        ValueError: A string holds a lone surrogate, or a number is not finite.
    """
    return _make_line(_encode_json(value).encode())


def scan_frames(file: BinaryIO) -> Iterator[Frame]:
    """Yield every frame of `file`, sound or damaged, from its current position on, as offset 0.

    Holds one line in memory at a time. The last frame is damaged where its newline is missing.
    """
    offset = 0
    for line in file:
        stop = offset + len(line)
        yield Frame(offset, stop, _decode_line(line))
        offset = stop


def _make_line(body: bytes) -> bytes:
    return b"%08x %d %b\n" % (zlib.crc32(body), len(body), body)


def _decode_line(line: bytes) -> dict[str, Any] | None:
    body = line[line.find(b" ", 9) + 1 : -1]
    # Built anew and compared whole: also "0A" for "0a" or "012" for "12" is damage.
    if line != _make_line(body):
        return None
    try:
        value, _ = _decode_json(body.decode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
