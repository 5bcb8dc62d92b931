"""What the samples of a run come to in numbers, whether they are published or still in a journal.

open_run(): a run directory as Python values, complete or not. Takes no lock and writes nothing.

A run read back from its directory: typed samples, and what they come to in numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Message
from synthia_batch.errors import UsageError
from synthia_batch.job.schema import Job
from synthia_batch.results.read.counts import Tally
from synthia_batch.results.read.failures import FailedSample, list_failures
from synthia_batch.results.read.samples import FinishedSample
from synthia_batch.results.read.shards import list_samples
from synthia_batch.results.read.snapshot import open_looker
from synthia_batch.results.verify.facts import read_facts
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.parts.columns import read_part
from synthia_batch.storage.parts.schema import DATA_COLUMNS
from synthia_batch.storage.plan_file import require_plan
from synthia_batch.storage.recovery import Published
from synthia_batch.storage.saved_job import read_job


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """A run in numbers. `samples` is how many it will have, `finished` and `failed` those that ended.

    `failures` counts the failed ones by code, `finish_reasons` the finished ones by why they ended, both
    the commonest first. Tokens are the sums over the finished samples.
    """

    samples: int
    finished: int
    failed: int
    failures: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    prompt_tokens: int
    completion_tokens: int

    @property
    def missing(self) -> int:
        """The samples that are still to be made."""
        return self.samples - self.finished - self.failed

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {**asdict(self), "missing": self.missing}


def read_statistics(directory: Path) -> RunStatistics:
    """Return what the run in `directory` comes to so far. Reads small columns, a part at a time.

    Raises:
        UsageError: It is no run directory.
        IntegrityError: What it holds is not what was written.
    """
    facts = read_facts(directory)
    tally = Tally(max_tokens=facts.plan["identity"]["sampling"]["max_tokens"])
    for shard in list_samples(facts):
        numbers, codes = shard.read_numbers(), shard.read_codes()
        if numbers is not None:
            tally.add_made(numbers)
        if codes is not None:
            tally.add_failed(codes)
    whole = tally.whole
    return RunStatistics(
        samples=facts.shards[-1].stop,
        finished=whole.finished,
        failed=tally.failed,
        failures=tally.failures_by_number,
        finish_reasons=dict(whole.reasons.most_common()),
        prompt_tokens=whole.prompts.tokens,
        completion_tokens=whole.answers.tokens,
    )


_BATCH_ROWS = 256
"""Rows of a part that are Python values at a time."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is now. Holds no samples: each reading streams them, a published file at a time."""

    directory: Path

    @property
    def is_complete(self) -> bool:
        """Whether every sample has ended and is published. Looks each time.

        Raises:
            IntegrityError: The manifest was altered.
        """
        return read_manifest(RunDir(self.directory).manifest) is not None

    @property
    def job(self) -> Job:
        """The job as it was last said, its paths absolute: `run_job(run.job)` goes on with the run.

        Raises:
            UsageError: The run does not keep its job.
            IntegrityError: The job that it keeps was altered.
        """
        kept = read_job(RunDir(self.directory).job, self.directory.absolute())
        if kept is None:
            raise UsageError(
                f"{self.directory} does not keep its job; type the command that made it once, then look again"
            )
        return Job.model_validate(kept.values)

    def samples(
        self, kept: Sequence[str] | None = None, *, with_logprobs: bool = True
    ) -> Iterator[FinishedSample]:
        """Yield the finished samples in input order, with the columns `kept`, by default all kept ones.

        Of a run that is not complete, those in published files, which have up to 4,000 each.
        `with_logprobs` includes the run's log-probabilities, if any; they are most of such a file.

        Raises:
            UsageError: The run has kept no such column.
            IntegrityError: A file is missing or altered.
        """
        for path in self._list_data():
            yield from _read_samples(path, kept, with_logprobs)

    def failed(self, code: str | None = None) -> Iterator[FailedSample]:
        """Yield the samples that could not be made, or those of `code`, in the order of the input.

        Raises:
            IntegrityError: What the directory holds is not what was written.
        """
        return list_failures(self.directory, code)

    def statistics(self) -> RunStatistics:
        """Return counts, tokens and reasons to end, of all samples that have ended.

        Raises:
            IntegrityError: What the directory holds is not what was written.
        """
        return read_statistics(self.directory)

    def _list_data(self) -> list[Path]:
        manifest = read_manifest(RunDir(self.directory).manifest)
        if manifest is not None:
            paths = (self.directory / part.path for part in manifest.parts)
            return [path for path in paths if path.parent.name == "data"]
        looker = open_looker(self.directory)
        return [
            looker.run_dir.data_part(state.shard)
            for state in looker.look()
            if isinstance(state, Published) and state.finished
        ]


def open_run(directory: str | PathLike[str]) -> Run:
    """Return the run in `directory`, complete or not, also while it goes on.

    Raises:
        UsageError: It is no run directory.
        IntegrityError: Its plan was altered.
    """
    if "://" in str(directory):
        raise UsageError(f"{directory}: open_run reads directories; copy the run here, and open the copy")
    path = Path(directory)
    run_dir = RunDir(path)
    if read_manifest(run_dir.manifest) is None:  # A copy of what is published is a run, too.
        require_plan(run_dir)
    return Run(path)


def open_complete_run(directory: Path) -> Run:
    """Return the complete run in `directory`.

    Raises:
        UsageError: It is no run directory, or its run is not complete.
        IntegrityError: Its plan or manifest was altered.
    """
    run = open_run(directory)
    if not run.is_complete:
        raise UsageError(
            f"{directory} is not complete: run its command again first; "
            f"`synthia-batch status {directory}` says how far it is"
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
            f"{path} has no column {missing[0]!r}; it has those that the run was told to keep: "
            f"run it with --keep-columns {missing[0]}"
        )
    ours = [name for name in ours if name in wanted]
    for batch in table.select(list(dict.fromkeys((*ours, *others)))).to_batches(max_chunksize=_BATCH_ROWS):
        for row in batch.to_pylist():
            values = {name: row[name] for name in ours}
            values |= {name: convert(row[name]) for name, convert in _CONVERTERS.items() if name in values}
            yield FinishedSample(**values, kept={name: row[name] for name in others})


def _read_messages(messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {"messages": _read_messages, "flags": tuple}
"""Columns whose values have another type in FinishedSample than in Arrow."""
