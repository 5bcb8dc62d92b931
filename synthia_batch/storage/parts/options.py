"""Every option of pyarrow's Parquet writer, with its reason: together they decide about the bytes.

Each is set, even to its default, so that a changed default changes no file. The rest (compressors, the
name in `created_by`) may change with pyarrow's version: the file's SHA-256 is then another, and the
digest of its rows, see row_digest, stays the same. A changed option needs a new job.identity.OUTPUT_FORMAT.
"""

from collections.abc import Mapping
from typing import Any

from synthia_batch.storage.layout import ROW_GROUP_ROWS
from synthia_batch.storage.parts.schema import DICTIONARY_PATHS

WRITE_OPTIONS: Mapping[str, Any] = {
    "version": "2.6",  # unsigned integers and nanoseconds as they are; 1.0 would change them
    "data_page_version": "1.0",  # some readers do not know 2.0 yet
    "row_group_size": ROW_GROUP_ROWS,
    # A target, checked after each batch of values: long texts make pages of several MB.
    "data_page_size": 1 << 20,
    "write_batch_size": 1024,
    "compression": "zstd",  # the smallest of those that pyarrow, polars, duckdb and datasets read
    "compression_level": 3,  # zstd's own default; pyarrow's default may change
    # Dictionaries only where values repeat; elsewhere they cost a quarter of the encoding time.
    "use_dictionary": DICTIONARY_PATHS,
    # A larger one is abandoned: the named columns have a handful of short values.
    "dictionary_pagesize_limit": 1 << 20,
    "use_byte_stream_split": False,  # it suits floats, which only logprobs has
    "column_encoding": None,  # the writer's choice, which version and dictionaries decide
    "write_statistics": True,  # readers skip row groups by them
    "write_page_index": False,  # few pages to skip, and one more place for damage without a checksum
    "write_page_checksum": True,  # `verify` finds a flipped bit and its place
    "store_schema": True,  # readers of Arrow get kept columns back in the types of the input
    "use_compliant_nested_type": True,  # list items are called "element", as the format says
    "store_decimal_as_integer": False,  # as in the input, which older readers know
    "use_deprecated_int96_timestamps": False,  # times as integers, whatever the flavor
    "coerce_timestamps": None,  # kept columns keep their unit
    "allow_truncated_timestamps": False,  # and every digit
    "sorting_columns": None,  # rows are in input order, which is not that of a column
    "encryption_properties": None,
    "flavor": None,  # Spark's would rename columns
}
