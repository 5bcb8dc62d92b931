"""Page checksums of a Parquet file, verified without decoding, at the speed of the disk.

pyarrow checks a page only when it decodes it, which is ten times as slow as CRC-32. So the page headers
are read here: Thrift's compact protocol, of which a header uses little.
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift (PageHeader)
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from synthia_batch.storage.atomic import storage_errors

_TAIL_BYTES = 8  # of the file: the footer's length in four bytes, little-endian, and "PAR1"
_HEADER_BYTES = 4096  # more than any header of ours: its statistics hold two truncated values
_COMPRESSED_SIZE, _CRC = 3, 4  # field numbers of PageHeader
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 0, 1, 2, 3, 4, 5, 6, 7, 8, 12


@dataclass(frozen=True, slots=True)
class PageDamage:
    """Damage to a page or to the footer, at byte `offset` of the file."""

    offset: int
    reason: str


def find_page_damage(path: Path) -> PageDamage | None:
    """Return the first damage to `path` that the checksums of its pages show, None if there is none."""
    try:
        metadata = pq.read_metadata(path)
        chunks = [
            metadata.row_group(group).column(column)
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ]
    except (pa.ArrowException, OSError) as exc:
        return PageDamage(_locate_footer(path), f"the footer cannot be read: {exc}")
    with storage_errors("read", path):
        fd = os.open(path, os.O_RDONLY)
        try:
            for chunk in chunks:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                damage = _check_chunk(fd, start, start + chunk.total_compressed_size)
                if damage is not None:
                    return damage
        finally:
            os.close(fd)
    return None


def _check_chunk(fd: int, start: int, stop: int) -> PageDamage | None:
    while start < stop:
        header = os.pread(fd, _HEADER_BYTES, start)
        try:
            length, values = _read_header(header)
            size, crc = values[_COMPRESSED_SIZE], values[_CRC]
        except (IndexError, KeyError, ValueError):
            return PageDamage(start, "a page's header cannot be read")
        page = header[length : length + size]
        if len(page) < size:
            page += os.pread(fd, size - len(page), start + length + len(page))
        if size < 0 or len(page) < size or zlib.crc32(page) != crc & 0xFFFFFFFF:
            return PageDamage(start, "a page fails its checksum")
        start += length + size
    return None


def _read_header(data: bytes) -> tuple[int, dict[int, int]]:
    """Return the header's length in bytes and its integers by field number."""
    reader = _Compact(data)
    values = {field: reader.read_integer() for field in reader.walk_struct(_I32)}
    return reader.at, values


class _Compact:
    """Reads a Thrift struct in the compact protocol. Anything else raises IndexError or ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def walk_struct(self, wanted: int) -> Iterator[int]:
        """Yield the number of each field of type `wanted`, which the caller then reads; skip the others."""
        number = 0
        while (head := self._read_byte()) != _STOP:
            kind, step = head & 0x0F, head >> 4
            number = number + step if step else self.read_integer()
            if kind == wanted:
                yield number
            else:
                self._skip(kind)

    def read_integer(self) -> int:
        """Return a zigzag varint."""
        value = self._read_varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, kind: int) -> None:
        if kind in (_TRUE, _FALSE):
            return
        if kind in (_I16, _I32, _I64):
            self._read_varint()
        elif kind == _BYTE:
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._read_varint()  # moves `at` itself
            self.at += length
        elif kind == _STRUCT:
            for _ in self.walk_struct(-1):
                pass
        else:  # A header has no lists, sets or maps.
            raise ValueError(f"a page header has no field of type {kind}")

    def _read_varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._read_byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def _read_byte(self) -> int:
        byte = self._data[self.at]
        self.at += 1
        return byte


def _locate_footer(path: Path) -> int:
    with storage_errors("read", path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    start = size - _TAIL_BYTES - int.from_bytes(tail[:4], "little")
    return start if tail.endswith(b"PAR1") and start > 0 else max(0, size - _TAIL_BYTES)
