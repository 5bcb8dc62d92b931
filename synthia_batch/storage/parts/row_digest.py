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

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3

VERSION = 1
"""Part of every digest: a change of the method changes all digests."""
_Feed = Callable[[Any], Any]


def digest_rows(table: pa.Table) -> str:
    """Return the digest of the rows of `table`, in order, as 32 hex digits."""
    hasher = blake3(b"synthia-batch rows %d\0%d\0" % (VERSION, table.num_rows))
    for name, column in zip(table.column_names, table.columns, strict=True):
        _feed_text(hasher.update, name)
        _feed_column(hasher.update, _to_array(column))
    return hasher.hexdigest(length=16)


def _to_array(column: pa.ChunkedArray) -> pa.Array:
    # The digest must not depend on a reader's chunks.
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _feed_column(feed: _Feed, array: pa.Array) -> None:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        _feed_column(feed, array.storage)
        return
    if pa.types.is_dictionary(kind):
        _feed_column(feed, array.dictionary_decode())
        return
    _feed_buffer(feed, pc.cast(array.is_valid(), pa.uint8()), 1)
    _feed_values(feed, array.drop_null())


def _feed_values(feed: _Feed, array: pa.Array) -> None:
    """Feed an array without nulls."""
    kind = array.type
    if _is_text(kind):
        _feed_lengths(feed, pc.binary_length(array))
        # Texts are contiguous: one buffer from the start of the first to the end of the last.
        large = array.cast(pa.large_binary())
        start, stop = _find_ends(large)
        if stop > start:
            feed(memoryview(large.buffers()[2])[start:stop])
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        _feed_lengths(feed, pc.list_value_length(array))
        _feed_column(feed, array.flatten())
    elif pa.types.is_struct(kind):
        for number, child in enumerate(array.flatten()):
            _feed_text(feed, kind.field(number).name)
            _feed_column(feed, child)
    elif pa.types.is_boolean(kind):
        _feed_buffer(feed, pc.cast(array, pa.uint8()), 1)
    elif _is_fixed_width(kind):
        _feed_buffer(feed, array, kind.bit_width // 8)
    elif not pa.types.is_null(kind):
        _feed_text(feed, repr(array.to_pylist()))


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
