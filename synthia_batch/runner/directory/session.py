"""Opening a run: whose directory it is, what is planned, and what earlier attempts left of it."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Shard
from synthia_batch.errors import IdentityMismatch, IntegrityError, RunLocked, UsageError
from synthia_batch.inputs import Scan, Source, open_files
from synthia_batch.inputs.records.row_ids import DuplicateIndex
from synthia_batch.job.identity import compare_identities
from synthia_batch.job.plan import ROW_SYSTEM, plan_shards
from synthia_batch.job.resolved import PlanSpec, ResolvedJob
from synthia_batch.results.quality.flags import open_flagging
from synthia_batch.runner.directory.assembler import Assembler
from synthia_batch.runner.directory.reopen import FailureChoice, Reopener
from synthia_batch.runner.directory.run_store import RunStore
from synthia_batch.runner.resolve import select_rows
from synthia_batch.storage.atomic import make_directory, publish_bytes
from synthia_batch.storage.events import EventLog
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, read_ledger
from synthia_batch.storage.lock import RunLock, WriterEpoch, read_boot_id
from synthia_batch.storage.manifest import withdraw_manifest
from synthia_batch.storage.parts.reader import SampleGrid
from synthia_batch.storage.parts.schema import PartFormat
from synthia_batch.storage.plan_file import plan_digest, read_plan, write_plan_once
from synthia_batch.storage.recovery import (
    OnProgress,
    Published,
    ShardState,
    check_parts,
    inspect_shard,
    list_temporary_files,
    remove_leftovers,
    remove_unbegun,
)
from synthia_batch.storage.remote.claim import claim_remote
from synthia_batch.storage.remote.mirror import Mirror
from synthia_batch.storage.saved_job import write_job


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRun:
    """A run directory whose lock is ours, and with it, where the output goes there, the object store."""

    lock: RunLock
    mirror: Mirror | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run directory that is ours to write to, with its plan. `store` knows what is done.

    `name` and `source_files` are the job's and its inputs' when the run began. Neither is identity,
    but both are in the output: a run resumed under other names goes on under its first ones.
    """

    run_dir: RunDir
    name: str
    source_files: tuple[str, ...]
    scan: Scan
    plan_digest: str
    store: RunStore


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedRun:
    """A run directory whose lock is ours, looked at and found sound, and not touched yet.

    `states` is what earlier attempts left of each shard. `plan` is that of plan.json, or what is to
    be written there.
    """

    run_dir: RunDir
    lock: RunLock
    mirror: Mirror | None
    plan: Mapping[str, Any]
    assembler: Assembler
    attempt: WriterEpoch
    shards: Sequence[Shard]
    states: Sequence[ShardState]

    @property
    def grid(self) -> SampleGrid:
        """How its samples lie in the parts."""
        part_format = self.assembler.part_format
        return make_grid(
            self.assembler.plan, has_flags=part_format.has_flags, has_logprobs=part_format.has_logprobs
        )

    @property
    def reopener(self) -> Reopener:
        """What reads its samples back."""
        return Reopener(run_dir=self.run_dir, grid=self.grid, attempt=self.attempt)


def refuse_other_identity(job: ResolvedJob, run_dir: RunDir) -> None:
    """Return if `run_dir` is this job's, or free to become it. Touches nothing.

    Raises:
        IdentityMismatch: It belongs to another job; every field that differs is named.
        UsageError: It is a file, or a directory with files of something else.
    """
    plan = read_plan(run_dir.plan)
    if plan is not None:
        differences = compare_identities(plan["identity"], job.identity)
        if differences:
            lines = [f"{run_dir.root} belongs to another job; nothing was touched. What differs:"]
            lines += [f"  {difference}" for difference in differences]
            lines.append("run without -o for a directory of its own, or say the job as it was")
            raise IdentityMismatch("\n".join(lines))
    elif run_dir.root.exists() and not run_dir.root.is_dir():
        raise UsageError(f"-o {run_dir.root}: is a file; name a directory")
    elif run_dir.root.exists() and not run_dir.hidden.exists() and any(run_dir.root.iterdir()):
        raise UsageError(f"-o {run_dir.root}: holds files that are no run; name an empty or a new directory")


def scan_input(job: ResolvedJob, source: Source, on_progress: Callable[[int], None] | None = None) -> Scan:
    """Read the job's whole input once, and return what there is.

    Raises:
        InputRefused: It has faults.
        UsageError: The selection does not fit its columns.
    """
    with tempfile.TemporaryDirectory(prefix="synthia-batch-") as scratch:
        return source.scan(select_rows(job.declared, job.prompt_template), Path(scratch), on_progress)


@contextmanager
def lock_run(job: ResolvedJob, *, claims_remote: bool = False) -> Iterator[HeldRun]:
    """Take the job's run directory for the block; it is made where it was not there.

    With `claims_remote`, an output that goes to an object store is claimed there too, for writing.

    A directory that was made here, and in which no run has begun by the end of the block, is
    removed again: a refused input leaves nothing behind.

    Raises:
        RunLocked: Another process has the directory.
        IdentityMismatch: Another process has just begun another job there.
        SynthiaBatchError: As for hold_remote.
        StorageFailed: It cannot be made.
    """
    run_dir = RunDir(job.output)
    made = _list_missing(run_dir.hidden)
    make_directory(run_dir.hidden)
    lock = RunLock(run_dir, _now())
    lock.take()
    try:
        refuse_other_identity(job, run_dir)  # Another process may have begun it since it was looked at.
        if job.remote is None or not claims_remote:
            yield HeldRun(lock=lock, mirror=None)
        else:
            with claim_remote(job.remote, run_dir, lock, job.identity) as mirror:
                yield HeldRun(lock=lock, mirror=mirror)
    finally:
        if run_dir.hidden in made and not run_dir.plan.exists():
            remove_unbegun(run_dir, made)
        lock.release()


def inspect_run(
    job: ResolvedJob,
    held: HeldRun,
    on_rows: Callable[[int], None] | None = None,
    on_check: OnProgress | None = None,
) -> LockedRun:
    """Return what is in the run directory whose lock is ours; changes nothing.

    The input of a new run is read through: `on_rows` is told how far that is, as `on_check` is of
    the bytes of what is published.

    Raises:
        InputRefused: The input has faults.
        IntegrityError: Something in the directory is not as it was written.
        StorageFailed: It cannot be read.
    """
    run_dir = RunDir(job.output)
    source = open_files(job.inputs)
    plan = read_plan(run_dir.plan)
    if plan is not None and run_dir.duplicates.exists():
        scan = Scan.from_dict(plan["scan"], DuplicateIndex.load(run_dir.duplicates))
    else:
        scan = scan_input(job, source, on_rows)
    plan = plan or _make_plan(job, scan)
    if scan.to_dict() != plan["scan"]:
        raise IntegrityError(
            f"{source.shown} does not come to what {run_dir.plan} says of it; nothing was touched\n"
            "  put the input back as it was when the run began, or name another directory with -o"
        )
    attempt = WriterEpoch(plan_digest=plan_digest(plan), epoch=0, boot=read_boot_id())
    shards = plan_shards(scan.rows, job.plan.samples_per_row)
    latest = read_ledger(run_dir.ledger, attempt.plan_digest).latest
    states = [inspect_shard(run_dir, shard, latest, attempt) for shard in shards]
    check_parts(run_dir, states, on_check or (lambda done, total: None))
    return LockedRun(
        run_dir=run_dir,
        lock=held.lock,
        mirror=held.mirror,
        plan=plan,
        assembler=_make_assembler(job, source, scan, plan),
        attempt=attempt,
        shards=shards,
        states=states,
    )


@contextmanager
def begin_attempt(
    job: ResolvedJob, locked: LockedRun, again: FailureChoice | None = None
) -> Iterator[OpenRun]:
    """Begin the next epoch of a run that was looked at, and open it for writing for the block.

    The failed samples that `again` takes are to be made again.

    Raises:
        IntegrityError: A part is not what it was when it was looked at.
        StorageFailed: Something cannot be written.
    """
    run_dir = locked.run_dir
    owner = locked.lock.begin_epoch()
    run_dir.create()
    _keep_plan(job, locked)
    attempt = dataclasses.replace(locked.attempt, epoch=owner.epoch)
    with ExitStack() as stack:
        events = stack.enter_context(closing(EventLog.open(run_dir.events, _now)))
        events.append("attempt_started", epoch=owner.epoch, pid=owner.pid, host=owner.host)
        states = locked.states
        if again is not None:
            # A crash between the two leaves a run that only lacks its manifest: the next one writes it.
            withdraw_manifest(run_dir)
            events.append("failed_reopened", code=again.code)
            states = dataclasses.replace(locked.reopener, attempt=attempt).reopen(states, again)
        remove_leftovers(run_dir, states)
        mirror = locked.mirror
        if mirror is not None:
            _start_mirror(mirror, attempt.plan_digest, states)
        store = RunStore(
            run_dir=run_dir,
            shards=locked.shards,
            states=list(states),
            attempt=attempt,
            ledger=PartLedger.open(run_dir.ledger, attempt),
            events=events,
            assembler=locked.assembler,
        )
        if mirror is not None:
            store.on_published, store.check = mirror.submit, mirror.check
        stack.enter_context(store)
        scan = locked.assembler.scan
        yield OpenRun(
            run_dir=run_dir,
            name=locked.plan["name"],
            source_files=list_source_files(locked.plan),
            scan=scan,
            plan_digest=attempt.plan_digest,
            store=store,
        )
        if mirror is not None:
            mirror.settle()


def complete_mirror(locked: LockedRun) -> None:
    """Put a run that is complete in its directory into its object store, where it has one.

    Raises:
        SynthiaBatchError: As for Mirror.settle.
    """
    if locked.mirror is not None:
        _start_mirror(locked.mirror, locked.attempt.plan_digest, locked.states)
        locked.mirror.settle()


def _start_mirror(mirror: Mirror, plan_digest: str, states: Sequence[ShardState]) -> None:
    mirror.begin(plan_digest)
    mirror.submit_all((state.shard, state.shard_entry) for state in states if isinstance(state, Published))


def tidy_complete_run(job: ResolvedJob) -> None:
    """Remove what a retry that was killed as it began left of a complete run, and keep a job that is missing.

    Touches nothing where nothing is amiss, or where another process has the run: then it is that one's.

    Raises:
        StorageFailed: A file cannot be removed or written.
    """
    run_dir = RunDir(job.output)
    if run_dir.job.exists() and not list_temporary_files(run_dir):
        return
    with suppress(RunLocked), lock_run(job):
        # Under the lock: what looked left over may have been another's unfinished work.
        remove_leftovers(run_dir, ())
        if not run_dir.job.exists():
            write_job(run_dir.job, job.said)


def make_grid(spec: PlanSpec, *, has_flags: bool = False, has_logprobs: bool = False) -> SampleGrid:
    """Return how the samples of a row follow each other in the parts."""
    return SampleGrid(
        systems=tuple(system.name for system in spec.systems),
        num_samples=spec.num_samples,
        own_system=None if spec.replace_own_system else ROW_SYSTEM,
        plays_turns=spec.plays_turns,
        has_flags=has_flags,
        has_logprobs=has_logprobs,
    )


def _list_missing(path: Path) -> list[Path]:
    """Return `path` and its parents as far as they are not there, the innermost first."""
    return [directory for directory in (path, *path.parents) if not directory.exists()]


def list_source_files(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the input's files as they were when the run began, in order."""
    return tuple(plan.get("source_files") or [plan["source_file"]])


def _make_plan(job: ResolvedJob, scan: Scan) -> dict[str, Any]:
    names = [file.name for file in job.inputs]
    return {
        "name": job.name,
        "source_file": names[0],
        **({"source_files": names} if len(names) > 1 else {}),
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "samples_per_row": job.plan.samples_per_row,
        "scan": scan.to_dict(),
    }


def _keep_plan(job: ResolvedJob, locked: LockedRun) -> None:
    """Write the plan of a new run, and how the job was last said."""
    run_dir = locked.run_dir
    if not (run_dir.plan.exists() and run_dir.duplicates.exists()):
        # Before the plan: where a plan is, everything that it needs must be.
        publish_bytes(run_dir.duplicates, *locked.assembler.scan.duplicates.encode())
    write_job(run_dir.job, job.said)
    write_plan_once(run_dir.plan, locked.plan)


def _make_assembler(job: ResolvedJob, source: Source, scan: Scan, plan: Mapping[str, Any]) -> Assembler:
    return Assembler(
        source=source,
        scan=scan,
        plan=job.plan,
        flagging=open_flagging(job.declared),
        part_format=PartFormat(
            model=job.model.name,
            source_file=plan["source_file"],
            source_files=tuple(plan.get("source_files", ())),
            kept=scan.kept,
            has_flags=bool(job.declared.flags),
            metadata={
                "synthia_batch.fingerprint": job.fingerprint,
                **{f"synthia_batch.system.{name}": digest for name, digest in job.identity["system"]},
            },
            has_logprobs=job.engine.sampling.logprobs is not None,
        ),
    )


def _now() -> datetime:
    return datetime.now().astimezone()
