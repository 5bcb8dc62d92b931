"""Facts about a run from its directory, sufficient to check or repair it without its job."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.checksummed_json import read_checksummed
from synthia_batch.core.errors import IntegrityError, UsageError
from synthia_batch.core.types import KeptColumn, Shard
from synthia_batch.job.identity import OUTPUT_FORMAT
from synthia_batch.job.plan import read_shards
from synthia_batch.storage.atomic import storage_errors
from synthia_batch.storage.events import read_events
from synthia_batch.storage.journal.frames import scan_frames
from synthia_batch.storage.journal.reader import find_last_epoch
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.lock import WriterEpoch, read_boot_id
from synthia_batch.storage.manifest import FORMAT_VERSION
from synthia_batch.storage.parts.reader import SampleGrid, read_grid
from synthia_batch.storage.plan_file import plan_digest, require_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run as described by plan.json. `writer` has epoch 0 unless the caller holds the lock.

    `decodes_rows`: checks decode the parts and compare their rows with the digest.
    """

    run_dir: RunDir
    plan: Mapping[str, Any]
    fingerprint: str
    writer: WriterEpoch
    shards: tuple[Shard, ...]
    grid: SampleGrid
    kept: tuple[KeptColumn, ...]
    decodes_rows: bool = False

    @property
    def metadata(self) -> dict[str, str]:
        """File metadata required in every part."""
        return {"synthia_batch.fingerprint": self.fingerprint}

    def name(self, path: Path) -> str:
        """Return `path` relative to the run directory, with forward slashes."""
        return path.relative_to(self.run_dir.root).as_posix()


def read_facts(directory: Path) -> RunFacts:
    run_dir = RunDir(directory)
    plan = require_plan(run_dir)
    return RunFacts(
        run_dir=run_dir,
        plan=plan,
        fingerprint=plan["fingerprint"],
        writer=WriterEpoch(plan_digest=plan_digest(plan), epoch=0, boot=read_boot_id()),
        shards=read_shards(plan),
        grid=read_grid(plan["identity"]),
        kept=tuple(KeptColumn(**column) for column in plan["scan"]["kept"]),
    )


def refuse_other_format(facts: RunFacts) -> None:
    """Raise UsageError for a run of another format: there, what is sound would look damaged."""
    formats = [("output format", facts.plan["identity"].get("output_format"), OUTPUT_FORMAT)]
    with suppress(IntegrityError):  # A damaged manifest is a finding.
        manifest = read_checksummed(facts.run_dir.manifest)
        if manifest is not None:
            formats.append(("manifest format", manifest.get("format_version"), FORMAT_VERSION))
    for what, found, known in formats:
        if found != known:
            raise UsageError(
                f"{facts.run_dir.root}: expected {what} {known}, got {found}; nothing was checked or "
                "changed: use the version of synthia-batch that began this run"
            )


def find_highest_epoch(facts: RunFacts) -> int:
    """Return the highest epoch found in any file of the run directory, 0 if none."""
    run_dir = facts.run_dir
    starts = (event for event in read_events(run_dir.events) if event.get("kind") == "attempt_started")
    epochs = [event["epoch"] for event in starts if isinstance(event.get("epoch"), int)]
    epochs += [
        epoch for path in run_dir.journals.glob("*.wal") if (epoch := find_last_epoch(path)) is not None
    ]
    with (
        storage_errors("read", run_dir.ledger),
        suppress(FileNotFoundError),
        run_dir.ledger.open("rb") as file,
    ):
        epochs += [
            frame.value["epoch"] for frame in scan_frames(file) if frame.value and "epoch" in frame.value
        ]
    return max(epochs, default=0)
