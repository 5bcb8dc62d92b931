"""The failed samples of a run, one after the other, from its published files and its journals.

Read from the directory alone, also while the run goes on; of the input only the lines and ids of rows
that failed in a shard which is not published yet.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Failed, Row, Shard
from synthia_batch.errors import IntegrityError, SynthiaBatchError
from synthia_batch.inputs import Scan, open_files, resolve_inputs
from synthia_batch.inputs.fetch.cache import is_copy
from synthia_batch.inputs.records.row_ids import DuplicateIndex
from synthia_batch.results.read.snapshot import LOOKS, RunLooker, open_looker
from synthia_batch.storage.journal.reader import replay
from synthia_batch.storage.parts.columns import read_part
from synthia_batch.storage.parts.schema import FAILED_NAMES
from synthia_batch.storage.recovery import Published, ShardState
from synthia_batch.storage.saved_job import read_job

COMMONEST = 3
"""Reasons that are named where a run had too many failures."""
_COLUMNS = tuple(name for name in FAILED_NAMES if name != "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedSample:
    """A sample that could not be made. `line` counts from 1, as in `rows.Row`.

    `line` and `id` are None where the run is not complete and its input is not where it was.
    `sample_index` counts the samples of one row and system message from 0.
    """

    code: str
    message: str
    file: str
    line: int | None
    id: str | None
    row_index: int
    sample_index: int

    @property
    def place(self) -> str:
        """The row as file:line, or what of that is known."""
        return f"{self.file}: row {self.row_index}" if self.line is None else f"{self.file}:{self.line}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A code, how many samples failed with it, and the first of them."""

    code: str
    count: int
    example: FailedSample


def list_failures(directory: Path, code: str | None = None) -> Iterator[FailedSample]:
    """Yield the failed samples of the run in `directory` in the order of the input, those of `code` alone.

    Holds the failed samples of one shard in memory at a time.

    Raises:
        UsageError: It is no run directory.
        IntegrityError: What it holds is not what was written.
    """
    looker = open_looker(directory)
    reader = _Reader(looker, _find_input(looker))
    for state in looker.look():
        if state.failed:
            yield from (sample for sample in reader.read(state) if code in (None, sample.code))


def find_reasons(directory: Path) -> list[Reason]:
    """Return why samples failed, the commonest reason first.

    Raises:
        UsageError, IntegrityError: As for list_failures.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, FailedSample] = {}
    for sample in list_failures(directory):
        counts[sample.code] += 1
        examples.setdefault(sample.code, sample)
    return [Reason(code=code, count=count, example=examples[code]) for code, count in counts.most_common()]


class _Reader:
    """Reads the failed samples of one shard after the other. `said` is what the job named as its input."""

    def __init__(self, looker: RunLooker, said: tuple[str, ...]) -> None:
        self._looker = looker
        self._rows = _InputRows(looker, said)
        self._names: Sequence[str] = looker.plan.get("source_files", ())
        # Of one file where it is, of several the names that they have in the output.
        self._shown = _show(said[0], looker.plan["source_file"])

    def read(self, state: ShardState) -> list[FailedSample]:
        """Return the failed samples of a shard as it was when it was looked at, or as it is now.

        Raises:
            IntegrityError: What is there of it is not what was written.
        """
        for _ in range(LOOKS):
            if isinstance(state, Published):
                return self._read_part(state)
            failed = self._replay(state.shard)
            if len(failed) >= state.failed:
                return self._describe(failed)
            # It was published meanwhile, and its journal is gone.
            state = self._looker.look()[state.shard.number]
        raise IntegrityError(f"{self._looker.run_dir.journal(state.shard)} changes too fast: look again")

    def _replay(self, shard: Shard) -> list[Failed]:
        try:
            outcomes = replay(self._looker.run_dir.journal(shard), shard, self._looker.attempt)
        except IntegrityError:  # Perhaps of a frame that was just being written: the next look tells.
            return []
        failed = (outcome for outcome in outcomes.values() if isinstance(outcome, Failed))
        return sorted(failed, key=lambda outcome: outcome.ordinal)

    def _read_part(self, state: Published) -> list[FailedSample]:
        if not state.failed:
            return []
        rows = read_part(self._looker.run_dir.failed_part(state.shard), _COLUMNS).to_pylist()
        return [
            FailedSample(file=self._show_file(row.pop("source_file")), line=row.pop("source_line"), **row)
            for row in rows
        ]

    def _show_file(self, name: str) -> str:
        return name if self._names else self._shown

    def _describe(self, failed: list[Failed]) -> list[FailedSample]:
        per_row = self._looker.plan["samples_per_row"]
        num_samples = self._looker.plan["identity"]["num_samples"]
        rows = self._rows.read({outcome.ordinal // per_row for outcome in failed})
        return [
            FailedSample(
                code=outcome.code,
                message=outcome.message,
                file=self._show_file(self._names[row.file] if row and self._names else self._shown),
                line=row.line if row else None,
                id=row.id if row else None,
                row_index=outcome.ordinal // per_row,
                sample_index=outcome.ordinal % num_samples,
            )
            for outcome in failed
            for row in [rows.get(outcome.ordinal // per_row)]
        ]


class _InputRows:
    """The rows of the input, where it is still there and what it was."""

    def __init__(self, looker: RunLooker, said: tuple[str, ...]) -> None:
        self._looker = looker
        self._said = said

    def read(self, wanted: set[int]) -> dict[int, Row]:
        """Return the rows of those indexes, or none where the input cannot be read any more."""
        try:
            duplicates = DuplicateIndex.load(self._looker.run_dir.duplicates)
            scan = Scan.from_dict(self._looker.plan["scan"], duplicates)
            files = resolve_inputs(self._said, makes=False).files
            rows = open_files(files).read_rows(scan, min(wanted), max(wanted) + 1)
            return {row.index: row for row in rows if row.index in wanted}
        except SynthiaBatchError:
            return {}


def _find_input(looker: RunLooker) -> tuple[str, ...]:
    """Return what was named as the input when the run was last started; its name where that is not known."""
    job = read_job(looker.run_dir.job, looker.run_dir.root)
    said = job.values["input"]["path"] if job else looker.plan["source_file"]
    return (said,) if isinstance(said, str) else tuple(said)


def _show(said: str, name: str) -> str:
    """Return the one file that `said` names as it is from here, or its `name` where it is no such file."""
    path = Path(said)
    if path.is_dir() or is_copy(path) or glob.has_magic(said):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else said)
