"""Opening a run: whose directory it is, what is planned, and what earlier attempts left of it."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from synthia_batch.assemble import Assembler
from synthia_batch.errors import IdentityMismatch, IntegrityError, UsageError
from synthia_batch.job.fingerprint import compare_identities
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.keeper import Keeper
from synthia_batch.plan import plan_shards
from synthia_batch.resolve import open_format, select_rows
from synthia_batch.source import Scan, Source, open_source
from synthia_batch.source.ids import Occurrences
from synthia_batch.store.atomic import publish_bytes
from synthia_batch.store.attempt import Attempt, read_boot_id
from synthia_batch.store.events import EventLog
from synthia_batch.store.intents import Intents, read_intents
from synthia_batch.store.lock import RunLock
from synthia_batch.store.part import PartFormat
from synthia_batch.store.plan_file import plan_digest, read_plan, write_plan_once
from synthia_batch.store.recovery import check_parts, inspect_shard, remove_leftovers
from synthia_batch.store.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run directory that is ours to write to, with its plan. `keeper` knows what is done."""

    run_dir: RunDir
    scan: Scan
    plan_digest: str
    keeper: Keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeptPlan:
    scan: Scan
    digest: str


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
        return source.scan(select_rows(job), Path(scratch), on_progress)


@contextmanager
def open_run(job: ResolvedJob, on_progress: Callable[[int], None] | None = None) -> Iterator[OpenRun]:
    """Open the job's run directory for writing, begun first where it is new, for the block.

    The input is read through before anything is made, so that a bad one leaves nothing behind.

    Raises:
        InputRefused: The input has faults.
        RunLocked: Another process has the directory.
        IntegrityError: Something in it is not as it was written.
        StorageFailed: It cannot be written.
    """
    run_dir = RunDir(job.output)
    source = open_source(job.input_path)
    scan = None if run_dir.plan.exists() else scan_input(job, source, on_progress)
    run_dir.create()
    with ExitStack() as stack:
        owner = stack.enter_context(RunLock(run_dir, _now()))
        refuse_other_identity(job, run_dir)  # Another process may have begun it since it was looked at.
        kept = _keep_plan(job, run_dir, scan)
        attempt = Attempt(plan_digest=kept.digest, epoch=owner.epoch, boot=read_boot_id())
        events = stack.enter_context(closing(EventLog.open(run_dir.events, _now)))
        events.append("attempt_started", epoch=owner.epoch, pid=owner.pid, host=owner.host)
        keeper = _open_keeper(job, run_dir, _make_assembler(job, source, kept.scan), attempt, events)
        stack.enter_context(keeper)
        yield OpenRun(run_dir=run_dir, scan=kept.scan, plan_digest=kept.digest, keeper=keeper)


def _keep_plan(job: ResolvedJob, run_dir: RunDir, scan: Scan | None) -> _KeptPlan:
    """Write the plan of a new run, or read that of one that was begun before."""
    plan = read_plan(run_dir.plan)
    if plan is not None:
        occurrences = Occurrences.load(run_dir.occurrences)
        return _KeptPlan(scan=Scan.from_dict(plan["scan"], occurrences), digest=plan_digest(plan))
    if scan is None:
        raise IntegrityError(f"{run_dir.plan} has gone while it was opened; run the same command again")
    # Before the plan: where a plan is, everything that it needs must be.
    publish_bytes(run_dir.occurrences, *scan.occurrences.encode())
    plan = {
        "name": job.name,
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "samples_per_row": job.plan.samples_per_row,
        "scan": scan.to_dict(),
    }
    return _KeptPlan(scan=scan, digest=write_plan_once(run_dir.plan, plan))


def _make_assembler(job: ResolvedJob, source: Source, scan: Scan) -> Assembler:
    return Assembler(
        source=source,
        scan=scan,
        plan=job.plan,
        prompt_format=open_format(job.prompt),
        part_format=PartFormat(
            model=job.model.name,
            source_file=job.input_path.name,
            kept=scan.kept,
            metadata={
                "synthia_batch.fingerprint": job.fingerprint,
                **{f"synthia_batch.system.{name}": digest for name, digest in job.identity["system"].items()},
            },
        ),
    )


def _open_keeper(
    job: ResolvedJob, run_dir: RunDir, assembler: Assembler, attempt: Attempt, events: EventLog
) -> Keeper:
    """Look at all that earlier attempts left before anything is touched, then go on from there."""
    shards = plan_shards(assembler.scan.rows, job.plan.samples_per_row)
    latest = read_intents(run_dir.intents, attempt.plan_digest).latest
    states = [inspect_shard(run_dir, shard, latest, attempt) for shard in shards]
    check_parts(run_dir, states, lambda size: None)
    remove_leftovers(run_dir, states)
    return Keeper(
        run_dir=run_dir,
        shards=shards,
        states=states,
        attempt=attempt,
        intents=Intents.open(run_dir.intents, attempt),
        events=events,
        assembler=assembler,
    )


def _now() -> datetime:
    return datetime.now().astimezone()
