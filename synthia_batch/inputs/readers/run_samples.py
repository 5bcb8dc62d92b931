"""The samples of a complete run, of which a copy as Parquet was made; see `fetch.run_directory`."""

import dataclasses

from synthia_batch.inputs.base import Columns
from synthia_batch.inputs.readers.detect import FirstNames
from synthia_batch.inputs.readers.parquet import ParquetSource

ID_COLUMN = "id"


class RunSource(ParquetSource):
    """Samples as rows: their ids are the run's, unless another column is named."""

    def read_names(self, limit: int | None) -> FirstNames:
        """Return the columns; see `FileSource.read_names`.

        A kept question was answered in the run: it is not asked again unless the job says so.
        """
        names = super().read_names(limit)
        return dataclasses.replace(names, needs_prompt=True)

    def refine(self, columns: Columns) -> Columns:
        refined = super().refine(dataclasses.replace(columns, id=columns.id or ID_COLUMN))
        unused = tuple(name for name in refined.unused if name != refined.id)
        return dataclasses.replace(refined, unused=unused)
