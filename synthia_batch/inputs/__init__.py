"""From what a job names as its input to checked rows: one module per format behind `base.Source`."""

from synthia_batch.inputs.base import Columns, Scan, Selection, Source
from synthia_batch.inputs.fetch.content_digest import check_digest, digest_contents, digest_files
from synthia_batch.inputs.fetch.discover import InputFiles, ResolvedInput, resolve_inputs
from synthia_batch.inputs.fetch.normalize import drop_refused
from synthia_batch.inputs.fetch.numbered_rows import NUMBER, draw_columns
from synthia_batch.inputs.readers.open import open_file, open_files, open_source

__all__ = [
    "NUMBER",
    "Columns",
    "InputFiles",
    "ResolvedInput",
    "Scan",
    "Selection",
    "Source",
    "check_digest",
    "digest_contents",
    "digest_files",
    "draw_columns",
    "drop_refused",
    "open_file",
    "open_files",
    "open_source",
    "resolve_inputs",
]
