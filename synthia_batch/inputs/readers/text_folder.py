"""Folders of .txt files, of which a copy as JSON lines was made."""

import dataclasses

from synthia_batch.inputs.base import Columns
from synthia_batch.inputs.readers.jsonl import JsonlSource

ID_COLUMN = "id"


class TextFolderSource(JsonlSource):
    """The rows of a folder: their ids are the names of the files, unless another column is named."""

    def refine(self, columns: Columns) -> Columns:
        refined = dataclasses.replace(super().refine(columns), id=columns.id or ID_COLUMN)
        unused = tuple(name for name in refined.unused if name != refined.id)
        return dataclasses.replace(refined, unused=unused)
