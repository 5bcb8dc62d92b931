"""Where rows come from: one module per input format behind one interface, see `base.Source`.

From what a job names as its input to plain files on this machine, one after the other.
"""

from synthia_batch.inputs.base import Columns, Scan, Selection, Source
from synthia_batch.inputs.fetch.discover import Taken, TakenInput, digest_files, take_in
from synthia_batch.inputs.readers.open import open_files, open_source

__all__ = ["Columns", "Scan", "Selection", "Source", "open_files", "open_source"]


__all__ = ["Taken", "TakenInput", "digest_files", "take_in"]
