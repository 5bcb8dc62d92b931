"""From what a job names as its input to checked rows: one module per format behind `base.Source`."""

from synthia_batch.inputs.base import Columns, Scan, Selection, Source
from synthia_batch.inputs.fetch.discover import Taken, TakenInput, digest_files, take_in
from synthia_batch.inputs.readers.open import open_files, open_source

__all__ = [
    "Columns",
    "Scan",
    "Selection",
    "Source",
    "Taken",
    "TakenInput",
    "digest_files",
    "open_files",
    "open_source",
    "take_in",
]
