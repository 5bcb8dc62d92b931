"""The failed samples of a run, from its published files and its journals, even during the run.

The input is read only for the lines and ids of rows that failed in unpublished shards.
"""

import glob
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import Failed, Shard
from synthia_batch.inputs.fetch.cache import is_copy
from synthia_batch.job.select import ACCEPT_FAILED, EXPRESSION_FAILED, NOT_ACCEPTED, NOT_SELECTED
from synthia_batch.results.quality.flags import CODE_PREFIX
from synthia_batch.results.read.failed_rows import FailedRows
from synthia_batch.results.read.input_rows import InputRows
from synthia_batch.results.read.snapshot import MAX_READS, SnapshotReader, open_snapshots
from synthia_batch.storage.journal.reader import replay
from synthia_batch.storage.parts.columns import read_part
from synthia_batch.storage.parts.schema import FAILED_NAMES
from synthia_batch.storage.recovery import Published, ShardState

_BAD_ROWS = frozenset({"bad_row", "prompt_empty", "prompt_not_expressible", "adapter_unknown"})
"""Codes whose cause is in the row itself."""
_BY_IDENTITY = frozenset({"prompt_too_long", "context_overflow"})
"""Codes whose cause is a setting of the run's identity: a retry, which keeps that, fails again."""
SELECT_CODES = frozenset({NOT_SELECTED, EXPRESSION_FAILED})
ACCEPT_CODES = frozenset({NOT_ACCEPTED, ACCEPT_FAILED})
COMMONEST = 3
"""Number of reasons listed if a run had too many failures."""
_COLUMNS = tuple(name for name in FAILED_NAMES if name != "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedSample:
    """A failed sample. `line` counts from 1.

    `line` and `id` are None if the run is incomplete and its input was moved. `sample_index` counts the
    samples of one row and system message from 0.
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
        """The row as file:line, or its `row_index` if the line is unknown."""
        return f"{self.file}: row_index {self.row_index}" if self.line is None else f"{self.file}:{self.line}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReason:
    """A failure code, its number of samples, and the first of them."""

    code: str
    count: int
    example: FailedSample


def list_failures(directory: Path, code: str | None = None) -> Iterator[FailedSample]:
    """Yield the failed samples of the run in `directory`, or only those with `code`, in input order.

    Holds the failed samples of one shard in memory at a time.
    """
    snapshots = open_snapshots(directory)
    reader = _Reader(snapshots)
    for state in snapshots.read():
        if state.failed:
            yield from (sample for sample in reader.read(state) if code in (None, sample.code))


def find_reasons(directory: Path) -> list[FailureReason]:
    """Return why samples failed, most common reason first."""
    counts: Counter[str] = Counter()
    examples: dict[str, FailedSample] = {}
    for sample in list_failures(directory):
        counts[sample.code] += 1
        examples.setdefault(sample.code, sample)
    return [
        FailureReason(code=code, count=count, example=examples[code]) for code, count in counts.most_common()
    ]


def advise_on_failures(place: str, codes: Collection[str], failed: FailedRows | None = None) -> list[str]:
    """Return what helps against failures with these codes: the one place that says it.

    A run keeps its identity, so that every sample of a dataset was made alike. What only other settings or
    other rows can change is a run of its own, of the `failed` rows alone.
    """
    here, rows = shlex.quote(place), failed or FailedRows()
    flagged = [code for code in codes if code.startswith(CODE_PREFIX)]
    by_row = _BAD_ROWS | _BY_IDENTITY | ACCEPT_CODES
    again = [code for code in codes if code not in by_row and code not in flagged]
    lines = []
    if SELECT_CODES.intersection(codes):
        return ["a selection: what it does not keep stays in the run that it is of; select from that again"]
    if again:
        flag = f" --code {again[0]}" if len(again) == 1 else ""
        lines.append(f"fix the cause, then retry them: synthia-batch retry {here}{flag}")
    if _BY_IDENTITY.intersection(codes):
        lines.append(
            "too long in this run, whose settings stay as they are; "
            + rows.advise(place, "model.max_model_len", "TOKENS")
        )
    if _BAD_ROWS.intersection(codes):
        lines.append("bad rows fail again: correct them in a file of their own, and run that")
    if ACCEPT_CODES.intersection(codes):
        lines.append(
            "what was not accepted comes out the same again: run the job with another --accept or --seed, or "
            "more --max-candidates, into another directory"
        )
    if flagged:
        lines.append(
            "flagged answers come out the same again, but not with another seed; "
            + rows.advise(place, "seed", 1)
        )
    return lines


class _Reader:
    """Reads the failed samples of a shard."""

    def __init__(self, snapshots: SnapshotReader) -> None:
        self._snapshots = snapshots
        self._rows = InputRows(snapshots.run_dir, snapshots.plan)
        self._names: Sequence[str] = snapshots.plan.get("source_files", ())
        # A single file by its path, several by their names in the output.
        self._path = _describe_path(self._rows.paths[0], snapshots.plan["source_file"])

    def read(self, state: ShardState) -> list[FailedSample]:
        """Return the failed samples of a shard in `state`, or in its current state if it changed.

        Raises:
            IntegrityError: The shard's files were altered, or change too fast.
        """
        for _ in range(MAX_READS):
            if isinstance(state, Published):
                return self._read_part(state)
            failed = self._replay(state.shard)
            if len(failed) >= state.failed:
                return self._describe(failed)
            # Published in the meantime, so its journal is gone.
            state = self._snapshots.read()[state.shard.number]
        raise IntegrityError(f"{self._snapshots.run_dir.journal(state.shard)} changes too fast; try again")

    def _replay(self, shard: Shard) -> list[Failed]:
        try:
            outcomes = replay(self._snapshots.run_dir.journal(shard), shard, self._snapshots.writer)
        except IntegrityError:  # possibly a frame being written: the caller reads again
            return []
        failed = (outcome for outcome in outcomes.values() if isinstance(outcome, Failed))
        return sorted(failed, key=lambda outcome: outcome.ordinal)

    def _read_part(self, state: Published) -> list[FailedSample]:
        if not state.failed:
            return []
        rows = read_part(self._snapshots.run_dir.failed_part(state.shard), _COLUMNS).to_pylist()
        return [
            FailedSample(file=self._name_file(row.pop("source_file")), line=row.pop("source_line"), **row)
            for row in rows
        ]

    def _name_file(self, name: str) -> str:
        return name if self._names else self._path

    def _describe(self, failed: list[Failed]) -> list[FailedSample]:
        per_row = self._snapshots.plan["samples_per_row"]
        num_samples = self._snapshots.plan["identity"]["num_samples"]
        rows = self._rows.read({outcome.ordinal // per_row for outcome in failed})
        return [
            FailedSample(
                code=outcome.code,
                message=outcome.message,
                file=self._name_file(self._names[row.file] if row and self._names else self._path),
                line=row.line if row else None,
                id=row.id if row else None,
                row_index=outcome.ordinal // per_row,
                sample_index=outcome.ordinal % num_samples,
            )
            for outcome in failed
            for row in [rows.get(outcome.ordinal // per_row)]
        ]


def _describe_path(text: str, name: str) -> str:
    """Return the path of a single input file, relative if below the working directory; else `name`."""
    path = Path(text)
    if path.is_dir() or is_copy(path) or glob.has_magic(text):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else text)
