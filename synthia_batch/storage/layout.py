"""Every path of a run directory, once."""

from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import make_directory


@dataclass(frozen=True, slots=True)
class RunDir:
    """Where the files of one run are. Knows names, never contents."""

    root: Path

    def create(self) -> None:
        """Make the directories that every run has. Does nothing where they are there.

        Raises:
            StorageFailed: A directory cannot be made.
        """
        # The hidden one first: a directory with `data` and without it is taken for somebody else's.
        for directory in (self.journals, self.logs, self.data):
            make_directory(directory)

    @property
    def readme(self) -> Path:
        """The dataset card."""
        return self.root / "README.md"

    @property
    def report(self) -> Path:
        """The report for people. No part of the dataset: nothing is read from it or checked of it."""
        return self.root / "report.html"

    @property
    def manifest(self) -> Path:
        """Written last: its existence says that the run is complete."""
        return self.root / "manifest.json"

    @property
    def data(self) -> Path:
        """The directory of finished samples."""
        return self.root / "data"

    @property
    def failed(self) -> Path:
        """The directory of samples that could not be made. Only there where there are some."""
        return self.root / "failed"

    @property
    def hidden(self) -> Path:
        """The run's own memory. Readers of datasets pass over names that begin with a dot."""
        return self.root / ".synthia"

    @property
    def plan(self) -> Path:
        """What the run is: written once."""
        return self.hidden / "plan.json"

    @property
    def job(self) -> Path:
        """The job as it was last said: what `retry` runs again. No part of the run's identity."""
        return self.hidden / "job.json"

    @property
    def state_name(self) -> Path:
        """What tells this directory from any other that writes to the same object store."""
        return self.hidden / "state.json"

    @property
    def duplicates(self) -> Path:
        """Which rows of the input repeat others: what their ids need beside their content."""
        return self.hidden / "occurrences.bin"

    @property
    def canary(self) -> Path:
        """What the engines answer to the canary prompts, written once."""
        return self.hidden / "canary.json"

    @property
    def lock(self) -> Path:
        """Held by the one process that may write here."""
        return self.hidden / "lock"

    @property
    def owner(self) -> Path:
        """Who holds the lock, or held it last, and the epoch."""
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
        """The finished samples of `shard`: named as `datasets` looks for them."""
        return self.data / f"train-{shard.number:05d}-of-{shard.count:05d}.parquet"

    def failed_part(self, shard: Shard) -> Path:
        """The samples of `shard` that could not be made."""
        return self.failed / f"failed-{shard.number:05d}-of-{shard.count:05d}.parquet"

    def journal(self, shard: Shard) -> Path:
        """The finished samples of `shard` until its parts are published."""
        return self.journals / f"shard-{shard.number:05d}.wal"

    def worker_log(self, index: int) -> Path:
        """What worker `index` and its engine have to say."""
        return self.logs / f"worker-{index}.log"
