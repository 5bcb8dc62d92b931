"""From what a job names as its input to checked rows: one module per format behind `base.Source`."""

from synthia_batch.inputs.base import Columns, Scan, Selection, Source
from synthia_batch.inputs.fetch.discover import (
    InputFiles,
    ResolvedInput,
    check_digest,
    digest_contents,
    digest_files,
    resolve_inputs,
)
from synthia_batch.inputs.fetch.normalize import drop_refused
from synthia_batch.inputs.readers.open import open_files, open_source

__all__ = [
    "Columns",
    "InputFiles",
    "ResolvedInput",
    "Scan",
    "Selection",
    "Source",
    "check_digest",
    "digest_contents",
    "digest_files",
    "drop_refused",
    "open_files",
    "open_source",
    "resolve_inputs",
]
