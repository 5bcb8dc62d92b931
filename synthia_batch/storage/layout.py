"""Every path of a run directory, defined once."""

from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import make_directory


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run's files. Knows names, never contents."""

    root: Path

    def create(self) -> None:
        """Create the directories that every run has, if they are missing."""
        # The hidden one first: a directory with `data` but without it counts as somebody else's.
        for directory in (self.journals, self.logs, self.data):
            make_directory(directory)

    @property
    def readme(self) -> Path:
        """The dataset card."""
        return self.root / "README.md"

    @property
    def report(self) -> Path:
        """The report for people. Not part of the dataset: nothing reads or checks it."""
        return self.root / "report.html"

    @property
    def manifest(self) -> Path:
        """Written last: its existence marks the run as complete."""
        return self.root / "manifest.json"

    @property
    def data(self) -> Path:
        """The directory of finished samples."""
        return self.root / "data"

    @property
    def failed(self) -> Path:
        """The directory of failed samples. Exists only if there are any."""
        return self.root / "failed"

    @property
    def hidden(self) -> Path:
        """The run's internal state. Readers of datasets skip names that begin with a dot."""
        return self.root / ".synthia"

    @property
    def plan(self) -> Path:
        """The run's identity, written once."""
        return self.hidden / "plan.json"

    @property
    def job(self) -> Path:
        """The job as last specified, for `retry`. Not part of the run's identity."""
        return self.hidden / "job.json"

    @property
    def state_name(self) -> Path:
        """A unique name of this state directory among all that write to the same object store."""
        return self.hidden / "state.json"

    @property
    def duplicates(self) -> Path:
        """The input rows that repeat others. Their ids need this besides their content."""
        return self.hidden / "occurrences.bin"

    @property
    def canary(self) -> Path:
        """The engines' answers to the canary prompts, written once."""
        return self.hidden / "canary.json"

    @property
    def lock(self) -> Path:
        """Locked by the one process that may write here."""
        return self.hidden / "lock"

    @property
    def owner(self) -> Path:
        """The lock's current or last owner, and the epoch."""
        return self.hidden / "owner.json"

    @property
    def ledger(self) -> Path:
        """The ledger of parts."""
        return self.hidden / "intents.wal"

    @property
    def events(self) -> Path:
        """The history of the run."""
        return self.hidden / "events.jsonl"

    @property
    def journals(self) -> Path:
        """The directory of the journals of unfinished shards."""
        return self.hidden / "journal"

    @property
    def logs(self) -> Path:
        """The directory of the workers' logs."""
        return self.hidden / "logs"

    def data_part(self, shard: Shard) -> Path:
        """The finished samples of `shard`, under a name that `datasets` finds."""
        return self.data / f"train-{shard.number:05d}-of-{shard.count:05d}.parquet"

    def failed_part(self, shard: Shard) -> Path:
        """The failed samples of `shard`."""
        return self.failed / f"failed-{shard.number:05d}-of-{shard.count:05d}.parquet"

    def journal(self, shard: Shard) -> Path:
        """The finished samples of `shard` until its parts are published."""
        return self.journals / f"shard-{shard.number:05d}.wal"

    def worker_log(self, index: int) -> Path:
        """The log of worker `index` and its engine."""
        return self.logs / f"worker-{index}.log"


PART_FOLDERS = ("data/", "failed/")
"""The directories of parts, relative to the run directory."""
KEYS = RunDir(Path())
"""Relative paths: as_posix gives the keys of the same files in an object store."""
