"""synthia-batch itself: the command that a user types."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.throughput.measures import find_busy_shares
from benchmarks.throughput.process import Ended, python_command
from benchmarks.throughput.sides.base import Answer, Command, Reading
from benchmarks.throughput.workload import LIMITS_COLUMN, SEED, SYSTEM, Workload
from synthia_batch.job.schema import Determinism
from synthia_batch.results.read.history import read_progress
from synthia_batch.storage.events import read_events


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """Implements `Side`."""

    determinism: Determinism

    @property
    def name(self) -> str:
        """The price of strict is the difference between the two."""
        return "synthia-batch" if self.determinism == "strict" else "synthia-batch, fast"

    @property
    def note(self) -> str:
        """Nothing to say."""
        return f"`--determinism {self.determinism}`"

    def select(self, workload: Workload) -> Workload:
        """All of it."""
        return workload

    def prepare(self, workload: Workload, directory: Path) -> Command:
        """Its input is the JSONL file from which every side's prompts were made."""
        settings = {"model": workload.model, "max-tokens": workload.max_tokens, "workers": workload.workers}
        settings |= {"system": SYSTEM, "seed": SEED, "id-column": "id", "determinism": self.determinism}
        if workload.is_mixed:
            settings["sampling-column"] = LIMITS_COLUMN
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        if workload.is_dummy:
            flags += ["--set", "engine.load_format=dummy"]
        run = ("run", workload.input, "-o", directory / "run", *flags)
        return Command(arguments=python_command("synthia_batch", *run))

    def find_first(self, directory: Path) -> bool:
        """Whether a journal holds a sample: the moment from which it would survive a kill."""
        journals = (directory / "run" / ".synthia" / "journal").glob("*.wal")
        return any(b'{"finished":' in journal.read_bytes() for journal in journals)

    def read(self, workload: Workload, directory: Path, ended: Ended) -> Reading:
        """Times come from the run's history, answers from its dataset.

        The last sample's time is that of the last published file: a few hundredths late.
        """
        events = list(read_events(directory / "run" / ".synthia" / "events.jsonl"))
        times = {
            kind: [_stamp(e["time"]) for e in events if e["kind"] == kind]
            for kind in ("worker_ready", "shard_published")
        }
        columns = ["row_index", "prompt_tokens", "completion_tokens", "response"]
        rows = pq.read_table(directory / "run" / "data", columns=columns).to_pylist()
        last = max(times["shard_published"], default=None)
        return Reading(
            answers=[
                Answer(
                    prompt_tokens=row["prompt_tokens"], tokens=row["completion_tokens"], text=row["response"]
                )
                for row in sorted(rows, key=lambda row: row["row_index"])
            ],
            ready=min(times["worker_ready"], default=None),
            first=ended.first or last,
            last=last,
            busy={f"worker {n}": share for n, share in find_busy_shares(read_progress(events)).items()},
        )


def _stamp(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
