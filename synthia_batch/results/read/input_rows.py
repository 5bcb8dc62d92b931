"""The rows of a run's input, as far as it is still there unchanged. Nothing is fetched or copied."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from synthia_batch.core.digest import open_digest_cache
from synthia_batch.core.errors import IntegrityError, SynthiaBatchError
from synthia_batch.core.types import ANY_ROW_BYTES, Row
from synthia_batch.inputs import Scan, digest_contents, digest_files, open_files, resolve_inputs
from synthia_batch.inputs.base import CHECKPOINT_ROWS, Source
from synthia_batch.inputs.fetch.numbered_rows import NO_COLUMNS, read_drawn
from synthia_batch.inputs.records.row_ids import DuplicateIndex
from synthia_batch.job.fields import NUMBERED_ROWS
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.saved_job import read_job


class InputRows:
    """Finds rows of the input of a run with this `plan`, or none if the input is gone or has changed."""

    def __init__(self, run_dir: RunDir, plan: Mapping[str, Any]) -> None:
        job = read_job(run_dir.job, run_dir.root)
        declared = job.values["input"] if job else {"path": plan["source_file"]}
        paths = declared["path"] if "path" in declared else f"{NUMBERED_ROWS}{declared['rows']}"
        self.paths: tuple[str, ...] = (paths,) if isinstance(paths, str) else tuple(paths)
        self._drawn = read_drawn(job.values) if job else NO_COLUMNS
        self._run_dir = run_dir
        self._plan = plan
        self._opened: tuple[Source, Scan] | None = None
        self._is_lost = False
        self._places: dict[int, str] = {}

    def read(self, wanted: Collection[int]) -> dict[int, Row]:
        """Return the rows with these indexes that can be read."""
        return {
            row.index: row
            for first, stop in _group(wanted)
            for row in self._iterate(first, stop)
            if row.index in wanted
        }

    def locate(self, index: int) -> str | None:
        """Return the place of a row as file:line, None if it cannot be read. Files have their output names.

        The 1,000 rows from the checkpoint before it on are read, and their places are then known.
        """
        if index not in self._places:
            first = index // CHECKPOINT_ROWS * CHECKPOINT_ROWS
            names = self._plan.get("source_files") or [self._plan["source_file"]]
            for row in self._iterate(first, first + CHECKPOINT_ROWS):
                self._places[row.index] = f"{names[row.file]}:{row.line}"
        return self._places.get(index)

    def _iterate(self, first: int, stop: int) -> Iterator[Row]:
        if self._is_lost:
            return
        try:
            source, scan = self._opened = self._opened or self._open()
            yield from source.read_rows(scan, first, stop)
        except SynthiaBatchError:
            self._is_lost = True

    def _open(self) -> tuple[Source, Scan]:
        scan = Scan.from_dict(self._plan["scan"], DuplicateIndex.load(self._run_dir.duplicates))
        limit = scan.columns.max_row_bytes if scan.columns.bad_rows == "fail" else ANY_ROW_BYTES
        found = resolve_inputs(self.paths, makes=False, max_row_bytes=limit, drawn=self._drawn).files
        files = digest_contents(found, open_digest_cache())
        if digest_files(files) != self._plan["identity"]["input"]["digest"]:
            raise IntegrityError(f"{found[0].shown}: the input changed since the run began")
        return open_files(files), scan


def _group(wanted: Collection[int]) -> Iterator[tuple[int, int]]:
    """Yield first and stop of ranges that hold all of `wanted`, without its gaps of over 1,000 rows."""
    ordered = sorted(wanted)
    starts = [at for at, row in enumerate(ordered) if not at or row - ordered[at - 1] > CHECKPOINT_ROWS]
    for at, following in zip(starts, [*starts[1:], len(ordered)], strict=False):
        yield ordered[at], ordered[following - 1] + 1
