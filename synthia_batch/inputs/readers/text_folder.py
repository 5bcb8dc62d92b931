"""Folders of .txt files, of which a copy as JSON lines was made."""

import dataclasses

from synthia_batch.inputs.base import Columns, FileScan, Selection
from synthia_batch.inputs.readers.jsonl import JsonlSource
from synthia_batch.inputs.readers.scan import InputScan

ID_COLUMN = "id"


class TextFolderSource(JsonlSource):
    """The rows of a folder: their ids are the names of the files, unless another column is named."""

    def detect(self, selection: Selection) -> Columns:
        """Return the columns; see `Source.detect`."""
        return super().detect(_name_ids(selection))

    def scan_into(self, input_scan: InputScan) -> FileScan:
        """Add the results of one pass; see `FileReader.scan_into`."""
        input_scan.selection = _name_ids(input_scan.selection)
        return super().scan_into(input_scan)


def _name_ids(selection: Selection) -> Selection:
    return dataclasses.replace(selection, id_column=selection.id_column or ID_COLUMN)
