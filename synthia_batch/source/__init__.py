"""Where rows come from: one module per input format behind one interface, see `base.Source`."""

from synthia_batch.source.base import Columns, Scan, Selection, Source
from synthia_batch.source.open import open_files, open_source

__all__ = ["Columns", "Scan", "Selection", "Source", "open_files", "open_source"]
