"""Every option of pyarrow's Parquet writer, and why it is what it is: together they decide about bytes.

Each is said, also where it is the default, so that a default that changes changes no file. What pyarrow
decides beyond them (its compressors, its name in `created_by`) a new version may change: then the file's
SHA-256 is another and the digest of its rows, see row_digest, is the same. An option that changes here
changes job.fingerprint.OUTPUT_FORMAT.
"""

from collections.abc import Mapping
from typing import Any

ROW_GROUP_ROWS = 10_000
"""Rows that a reader takes at a time: a few megabytes to some tens of them."""

WRITE_OPTIONS: Mapping[str, Any] = {
    "version": "2.6",  # unsigned integers and nanoseconds as they are; 1.0 would change them
    "data_page_version": "1.0",  # 2.0 is still unknown to some readers
    "row_group_size": ROW_GROUP_ROWS,
    # A target that the writer looks at after each batch of values: long texts make pages of some MB.
    "data_page_size": 1 << 20,
    "write_batch_size": 1024,
    "compression": "zstd",  # the smallest of those that pyarrow, polars, duckdb and datasets read
    "compression_level": 3,  # zstd's own default; pyarrow's default may change
    # Dictionaries only where values repeat; elsewhere they cost a quarter of the encoding time.
    "use_dictionary": ["system", "finish_reason", "model", "code", "messages.list.element.role"],
    # Beyond it a column goes on without its dictionary: the named ones have a handful of short values.
    "dictionary_pagesize_limit": 1 << 20,
    "use_byte_stream_split": False,  # for floating-point columns, of which there are none of ours
    "column_encoding": None,  # the writer's choice, which version and dictionaries decide
    "write_statistics": True,  # readers skip row groups by them
    "write_page_index": False,  # few pages to skip, and one more place for damage without a checksum
    "write_page_checksum": True,  # `verify` finds a flipped bit, and says where
    "store_schema": True,  # readers of Arrow get kept columns back in the types of the input
    "use_compliant_nested_type": True,  # list items are called "element", as the format says
    "store_decimal_as_integer": False,  # as in the input, which older readers know
    "use_deprecated_int96_timestamps": False,  # times as integers, whatever the flavor
    "coerce_timestamps": None,  # kept columns keep their unit
    "allow_truncated_timestamps": False,  # and every digit
    "sorting_columns": None,  # rows are in input order, which no column of values says
    "encryption_properties": None,
    "flavor": None,  # Spark's would rename columns
}

LEFT_ALONE: Mapping[str, str] = {
    "table": "what is written",
    "where": "where to",
    "filesystem": "where to",
    "kwargs": "names of older versions",
    "max_rows_per_page": "not in pyarrow 20; 20,000 rows are two row groups of ours",
    "write_time_adjusted_to_utc": "not in pyarrow 20; False, which leaves times as they are",
    "bloom_filter_options": "not in pyarrow 20; None, no filters",
    "use_content_defined_chunking": "not in pyarrow 20; False, pages end by size",
}
"""What pyarrow.parquet.write_table takes and this package does not say, each with its reason."""
