"""Every path of a run directory, defined once."""

from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import make_directory


class _Place:
    """A file or directory at `path` below the root of a RunDir."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __get__(self, run_dir: "RunDir", kind: type) -> Path:
        return run_dir.root / self._path


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of one run's files. Knows names, never contents."""

    root: Path

    readme = _Place("README.md")
    """The dataset card."""
    report = _Place("report.html")
    """The report for people. Not part of the dataset: nothing reads or checks it."""
    manifest = _Place("manifest.json")
    """Written last: its existence marks the run as complete."""
    data = _Place("data")
    """The directory of finished samples."""
    failed = _Place("failed")
    """The directory of failed samples. Exists only if there are any."""
    hidden = _Place(".synthia")
    """The run's internal state. Readers of datasets skip names that begin with a dot."""
    plan = _Place(".synthia/plan.json")
    """The run's identity, written once."""
    job = _Place(".synthia/job.json")
    """The job as last specified, for `retry`. Not part of the run's identity."""
    state_name = _Place(".synthia/state.json")
    """A unique name of this state directory among all that write to the same object store."""
    duplicates = _Place(".synthia/occurrences.bin")
    """The input rows that repeat others. Their ids need this besides their content."""
    canary = _Place(".synthia/canary.json")
    """The engines' answers to the canary prompts, written once."""
    lock = _Place(".synthia/lock")
    """Locked by the one process that may write here."""
    owner = _Place(".synthia/owner.json")
    """The lock's current or last owner, and the epoch."""
    ledger = _Place(".synthia/intents.wal")
    """The ledger of parts."""
    events = _Place(".synthia/events.jsonl")
    """The history of the run."""
    journals = _Place(".synthia/journal")
    """The directory of the journals of unfinished shards."""
    logs = _Place(".synthia/logs")
    """The directory of the workers' logs."""
    pipeline = _Place("pipeline.json")
    """In a pipeline's directory, which is no run's: its stages."""
    stages = _Place("stages")
    """In a pipeline's directory: the stages' runs."""
    run_log = _Place(".synthia/logs/run.log")
    """The messages of every attempt, also if no terminal shows them."""

    def create(self) -> None:
        """Create the directories that every run has, if they are missing."""
        # The hidden one first: a directory with `data` but without it counts as somebody else's.
        for directory in (self.journals, self.logs, self.data):
            make_directory(directory)

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


ROW_GROUP_ROWS = 10_000
"""Rows of a part that are written, and loaded by a reader, at a time: a few megabytes to some tens."""
PART_FOLDERS = ("data/", "failed/")
"""The directories of parts, relative to the run directory."""
KEYS = RunDir(Path())
"""Relative paths: as_posix gives the keys of the same files in an object store."""
