"""The read API: open_run() returns a run, complete or not. Takes no lock and writes nothing."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.core.types import Message
from synthia_batch.job.schema import Job
from synthia_batch.results.read.counts import RunCounts
from synthia_batch.results.read.failures import FailedSample, list_failures
from synthia_batch.results.read.samples import FinishedSample
from synthia_batch.results.read.shards import list_samples
from synthia_batch.results.read.snapshot import open_snapshots
from synthia_batch.results.verify.facts import read_facts
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.parts.columns import read_part
from synthia_batch.storage.parts.schema import DATA_COLUMNS
from synthia_batch.storage.plan_file import require_plan
from synthia_batch.storage.recovery import Published
from synthia_batch.storage.saved_job import read_job

_BATCH_ROWS = 256
"""Rows of a part converted to Python values at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """Counts of a run. `samples` is the planned total; `finished`, `failed` and `not_selected` have ended.

    `failures` counts failed samples by code, `finish_reasons` finished samples by finish reason, most
    common first. Tokens are sums over the finished samples.
    """

    samples: int
    finished: int
    failed: int
    not_selected: int
    failures: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int

    @property
    def missing(self) -> int:
        """Number of samples still to be generated."""
        return self.samples - self.finished - self.failed - self.not_selected

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {**asdict(self), "missing": self.missing}


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory in its current state. Samples are streamed, one published file at a time."""

    directory: Path

    @property
    def is_complete(self) -> bool:
        """Whether every sample has ended and is published. Checked on each access.

        Raises:
            IntegrityError: The manifest was altered.
        """
        return read_manifest(RunDir(self.directory).manifest) is not None

    @property
    def job(self) -> Job:
        """The job as last declared, with absolute paths: `run_job(run.job)` resumes the run.

        Raises:
            UsageError: The run has no saved job.
            IntegrityError: The saved job was altered.
        """
        saved = read_job(RunDir(self.directory).job, self.directory.absolute())
        if saved is None:
            raise UsageError(f"{self.directory} has no saved job; run its original command once to save it")
        return Job.model_validate(saved.values)

    def samples(
        self, kept: Sequence[str] | None = None, *, with_logprobs: bool = True
    ) -> Iterator[FinishedSample]:
        """Yield the finished samples in input order, with the columns `kept`, or all kept columns.

        If the run is incomplete, only published files are read; each has at most 4,000 samples by default.
        `with_logprobs` includes log-probabilities if the run has them; they are most of such a file.

        Raises:
            UsageError: The run has no such kept column.
            IntegrityError: A file is missing or altered.
        """
        for path in self._list_data():
            yield from _read_samples(path, kept, with_logprobs)

    def failed(self, code: str | None = None) -> Iterator[FailedSample]:
        """Yield the failed samples, or only those with `code`, in input order.

        Raises:
            IntegrityError: The directory's content was altered.
        """
        return list_failures(self.directory, code)

    def statistics(self) -> RunStatistics:
        """Return counts, tokens and finish reasons of all samples that have ended.

        Reads small columns, one part at a time.
        """
        facts = read_facts(self.directory)
        counts = RunCounts(max_tokens=facts.plan["identity"]["sampling"]["max_tokens"])
        for shard in list_samples(facts):
            numbers, codes = shard.read_numbers(), shard.read_codes()
            if numbers is not None:
                counts.add_finished(numbers)
            if codes is not None:
                counts.add_failed(codes)
        total = counts.total
        return RunStatistics(
            samples=facts.shards[-1].stop,
            finished=total.finished,
            failed=counts.failed,
            not_selected=counts.not_selected,
            failures=counts.failures,
            finish_reasons=dict(total.reasons.most_common()),
            prompt_tokens=total.prompts.tokens,
            completion_tokens=total.answers.tokens,
        )

    def _list_data(self) -> list[Path]:
        manifest = read_manifest(RunDir(self.directory).manifest)
        if manifest is not None:
            paths = (self.directory / part.path for part in manifest.parts)
            return [path for path in paths if path.parent.name == "data"]
        snapshots = open_snapshots(self.directory)
        return [
            snapshots.run_dir.data_part(state.shard)
            for state in snapshots.read()
            if isinstance(state, Published) and state.finished
        ]


def open_run(directory: str | PathLike[str]) -> Run:
    """Return the run in `directory`, complete or not. It may still be running.

    Raises:
        UsageError: `directory` is not a run directory.
        IntegrityError: Its plan was altered.
    """
    if "://" in str(directory):
        raise UsageError(f"{directory}: open_run needs a local directory; copy the run here and open that")
    path = Path(directory)
    run_dir = RunDir(path)
    if read_manifest(run_dir.manifest) is None:  # A copy of the published files alone has no plan.
        require_plan(run_dir)
    return Run(path)


def open_complete_run(directory: Path) -> Run:
    """Return the complete run in `directory`.

    Raises:
        UsageError: `directory` is not a run directory, or its run is not complete.
    """
    run = open_run(directory)
    if not run.is_complete:
        raise UsageError(
            f"{directory} is not complete: run its command again first; "
            f"`synthia-batch status {directory}` shows its progress"
        )
    return run


def _read_samples(path: Path, kept: Sequence[str] | None, with_logprobs: bool) -> Iterator[FinishedSample]:
    unwanted = () if with_logprobs or "logprobs" in (kept or ()) else ("logprobs",)
    wanted = [column.name for column in DATA_COLUMNS if column.name not in unwanted]
    table = read_part(path, None if kept is None else tuple(dict.fromkeys((*wanted, *kept))))
    schema = table.schema
    # By type as well: a run without flags may have kept a column of that name.
    ours = [
        column.name
        for column in DATA_COLUMNS
        if column.name in schema.names and schema.field(column.name).type == column.type
    ]
    others = [name for name in schema.names if name not in ours] if kept is None else kept
    missing = [name for name in others if name not in schema.names]
    if missing:
        raise UsageError(
            f"{path} has no column {missing[0]!r}: the run did not keep it; "
            f"run it with --keep-columns {missing[0]}"
        )
    ours = [name for name in ours if name in wanted]
    for batch in table.select(list(dict.fromkeys((*ours, *others)))).to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            values = {name: row[name] for name in ours}
            values |= {name: convert(row[name]) for name, convert in _CONVERTERS.items() if name in values}
            if values.get("messages_json") is not None:
                values["messages"] = _read_messages(json.loads(values["messages_json"]))
            yield FinishedSample(**values, kept={name: row[name] for name in others})


def _read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    return tuple(map(Message.from_dict, messages))


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {"messages": _read_messages, "flags": tuple}
"""Columns whose values have another type in FinishedSample than in Arrow."""
