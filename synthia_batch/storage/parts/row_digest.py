"""A digest of a table's rows: names, values and their order, independent of the library that wrote them.

Two files with equal digests hold the same rows, whatever the version of pyarrow, the compression, pages
and row groups. It is computed over Arrow's buffers, whose layout is a standard
(https://arrow.apache.org/docs/format/Columnar.html), at a few hundred MB/s.

The digest of a column covers its name, which values are null, and of the others
- fixed widths (numbers, times, decimals): their bytes, little-endian; booleans as bytes 0 and 1
- text and bytes: their lengths, then all of them
- lists: their lengths, then the column of their items
- structs: their columns
- dictionaries and extensions: the values behind them. Anything else: Python's repr.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

VERSION = 1
"""Part of every digest: a change of the method changes all digests."""
_Feed = Callable[[Any], Any]
Chunks = Iterable[pa.Array]
"""A column in pieces, which is gone through several times. The digest does not depend on the pieces."""


def digest_rows(table: pa.Table) -> str:
    """Return the digest of the rows of `table`, in order, as 32 hex digits."""
    columns = zip(table.column_names, table.columns, strict=True)
    return digest_columns(table.num_rows, ((name, column.type, column.chunks) for name, column in columns))


def digest_columns(rows: int, columns: Iterable[tuple[str, pa.DataType, Chunks]]) -> str:
    """Return the same for `columns`, each by name, type and chunks. One chunk is in memory at a time."""
    hasher = blake3(b"synthia-batch rows %d\0%d\0" % (VERSION, rows))
    for name, kind, chunks in columns:
        _feed_text(hasher.update, name)
        _feed_column(hasher.update, kind, chunks)
    return hasher.hexdigest(length=16)


@dataclass(frozen=True, slots=True)
class _Mapped:
    """The results of `function` for each chunk, computed anew each time."""

    function: Callable[[pa.Array], pa.Array]
    chunks: Chunks

    def __iter__(self) -> Iterator[pa.Array]:
        return map(self.function, self.chunks)


def _map(function: Callable[[pa.Array], pa.Array], chunks: Chunks) -> Chunks:
    return list(map(function, chunks)) if isinstance(chunks, list) else _Mapped(function, chunks)


def _feed_column(feed: _Feed, kind: pa.DataType, chunks: Chunks) -> None:
    if isinstance(kind, pa.BaseExtensionType):
        _feed_column(feed, kind.storage_type, _map(lambda array: array.storage, chunks))
        return
    if pa.types.is_dictionary(kind):
        _feed_column(feed, kind.value_type, _map(lambda array: array.dictionary_decode(), chunks))
        return
    for array in chunks:
        _feed_buffer(feed, pc.cast(array.is_valid(), pa.uint8()), 1)
    _feed_values(feed, kind, _map(lambda array: array.drop_null(), chunks))


def _feed_values(feed: _Feed, kind: pa.DataType, chunks: Chunks) -> None:
    if _is_text(kind):
        for array in chunks:
            _feed_lengths(feed, pc.binary_length(array))
        for array in chunks:
            _feed_texts(feed, array)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        for array in chunks:
            _feed_lengths(feed, pc.list_value_length(array))
        _feed_column(feed, kind.value_type, _map(lambda array: array.flatten(), chunks))
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _feed_text(feed, kind.field(number).name)
            children = _map(partial(_take_child, number), chunks)
            _feed_column(feed, kind.field(number).type, children)
    elif pa.types.is_boolean(kind):
        for array in chunks:
            _feed_buffer(feed, pc.cast(array, pa.uint8()), 1)
    elif _is_fixed_width(kind):
        for array in chunks:
            _feed_buffer(feed, array, kind.bit_width // 8)
    elif not pa.types.is_null(kind):
        _feed_text(feed, repr([value for array in chunks for value in array.to_pylist()]))


def _take_child(number: int, array: pa.Array) -> pa.Array:
    return array.flatten()[number]


def _feed_texts(feed: _Feed, array: pa.Array) -> None:
    # Texts are contiguous: one buffer from the start of the first to the end of the last.
    large = array.cast(pa.large_binary())
    start, stop = _find_ends(large)
    if stop > start:
        feed(memoryview(large.buffers()[2])[start:stop])


def _is_text(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in checks)


def _is_fixed_width(kind: pa.DataType) -> bool:
    checks = (pa.types.is_primitive, pa.types.is_decimal, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks) and kind.bit_width % 8 == 0


def _find_ends(large: pa.Array) -> tuple[int, int]:
    """Return the first and last offset of a large_binary array in its buffer."""
    if not len(large):
        return 0, 0
    offsets = memoryview(large.buffers()[1]).cast("q")
    return offsets[large.offset], offsets[large.offset + len(large)]


def _feed_lengths(feed: _Feed, lengths: pa.Array) -> None:
    _feed_buffer(feed, lengths.cast(pa.int64()), 8)


def _feed_buffer(feed: _Feed, array: pa.Array, width_bytes: int) -> None:
    """Feed the values of an array without nulls, `width_bytes` each."""
    if len(array):
        begin = array.offset * width_bytes
        feed(memoryview(array.buffers()[1])[begin : begin + len(array) * width_bytes])


def _feed_text(feed: _Feed, text: str) -> None:
    encoded = text.encode(errors="surrogatepass")
    feed(b"%d\0%s" % (len(encoded), encoded))
