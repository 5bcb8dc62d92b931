"""What the samples of a run come to in numbers, whether they are published or still in a journal.

open_run(): a run directory as Python values, complete or not. Takes no lock and writes nothing.

A run read back from its directory: typed samples, and what they come to in numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
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
_COLUMNS = (
    "id", "row_index", "sample_index", "system", "messages", "response", "reasoning", "finish_reason",
    "prompt_tokens", "completion_tokens", "seed", "model",
)  # fmt: skip
_FLAGS = "flags"
_LOGPROBS = "logprobs"
_ON_REQUEST = (_FLAGS, _LOGPROBS)
"""Columns that only runs have that were asked for them. Kept ones come beside these, if they are named."""


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
        """Yield the finished samples in the order of the input, with the columns `kept`, or all that are.

        Of a run that is not complete, those of files that are published: each has 4,000 at most.
        `with_logprobs`: with those, where the run has them; they are most of such a file.

        Raises:
            UsageError: The run has kept no such column.
            IntegrityError: A file is missing or altered.
        """
        named = set() if kept is None else set(kept)
        tells_logprobs = with_logprobs or _LOGPROBS in named
        for path in self._list_data():
            for row in _read_rows(path, None if kept is None else (*_COLUMNS, *kept), tells_logprobs):
                ours = {name: row.pop(name) for name in _COLUMNS}
                ours["messages"] = _read_messages(ours["messages"])
                flags, logprobs = tuple(row.get(_FLAGS, ())), row.get(_LOGPROBS)
                own = {name: value for name, value in row.items() if name in named or name not in _ON_REQUEST}
                yield FinishedSample(**ours, flags=flags, logprobs=logprobs, kept=own)

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


def _read_rows(path: Path, columns: Sequence[str] | None, with_logprobs: bool) -> Iterator[dict[str, Any]]:
    extra = (_FLAGS, _LOGPROBS) if with_logprobs else (_FLAGS,)
    table = read_part(path, None if columns is None else (*columns, *extra))
    if not with_logprobs and _LOGPROBS in table.column_names:
        table = table.drop_columns([_LOGPROBS])
    missing = [name for name in columns or () if name not in table.column_names]
    if missing:
        raise UsageError(
            f"{path} has no column {missing[0]!r}; it has what the run was told to keep: "
            f"run it with --keep-columns {missing[0]}"
        )
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist()


def _read_messages(messages: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)
