"""The run directory of one job, from its lock to its release."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from synthia_batch.core.errors import IntegrityError, RunLocked
from synthia_batch.core.events import EventBus
from synthia_batch.core.log import keep_log
from synthia_batch.core.shutdown import DrainRequest
from synthia_batch.core.types import Shard
from synthia_batch.inputs import Scan, open_files
from synthia_batch.inputs.records.row_ids import DuplicateIndex
from synthia_batch.job.plan import read_shards
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.directory.assembler import Assembler
from synthia_batch.runner.directory.plan import make_assembler, make_plan, refuse_other_identity, scan_input
from synthia_batch.runner.directory.reopen import FailureChoice, Reopener
from synthia_batch.runner.directory.run_store import RunStore
from synthia_batch.scheduler.events import AttemptStarted, FailedReopened
from synthia_batch.storage.atomic import make_directory, publish_bytes
from synthia_batch.storage.events import EventLog
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartLedger, read_ledger
from synthia_batch.storage.lock import RunLock, WriterEpoch, read_boot_id
from synthia_batch.storage.manifest import withdraw_manifest
from synthia_batch.storage.parts.reader import SampleGrid, read_grid
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
from synthia_batch.workers.pools.startup import PoolStarter


@dataclass(slots=True, kw_only=True)
class RunSession:
    """A run directory that this process has locked: first locked, then inspected, then open for writing.

    Attributes appear with the steps. `inspect` sets `plan` (that of plan.json, or the one to write there),
    `assembler`, `writer`, `shards` and `states`, what earlier attempts left of each shard, and
    `was_published`: all of them were published before. `begin` sets `store`. `events` gets the events of the
    run. A session that may generate samples also has `drain` and `starter`: see run.open_session. `started`
    is when it began, in seconds of `clock`.
    """

    job: ResolvedJob
    run_dir: RunDir
    lock: RunLock
    mirror: Mirror | None
    started: float
    clock: Callable[[], float] = time.monotonic
    events: EventBus = field(default_factory=EventBus)
    drain: DrainRequest = field(init=False)
    starter: PoolStarter = field(init=False)
    plan: Mapping[str, Any] = field(init=False)
    assembler: Assembler = field(init=False)
    writer: WriterEpoch = field(init=False)
    shards: Sequence[Shard] = field(init=False)
    states: Sequence[ShardState] = field(init=False)
    was_published: bool = field(init=False)
    store: RunStore = field(init=False)
    ended_before: int | None = None

    @property
    def scan(self) -> Scan:
        return self.assembler.scan

    @property
    def name(self) -> str:
        """The job's name when the run began: it is in the output, but not in the identity."""
        return str(self.plan["name"])

    @property
    def source_files(self) -> tuple[str, ...]:
        """The names of the input's files when the run began: in the output only, like `name`."""
        return tuple(self.plan.get("source_files") or [self.plan["source_file"]])

    @property
    def grid(self) -> SampleGrid:
        """The order of samples in the parts."""
        return read_grid(self.plan["identity"])

    @property
    def reopener(self) -> Reopener:
        """Reads samples back."""
        return Reopener(run_dir=self.run_dir, grid=self.grid, writer=self.writer)

    @property
    def made(self) -> int:
        """The number of samples that this session has ended."""
        if self.ended_before is None:
            return 0
        return self.store.finished + self.store.failed - self.ended_before

    def inspect(
        self, on_rows: Callable[[int], None] | None = None, on_check: OnProgress | None = None
    ) -> None:
        """Find out what is in the run directory, without changing anything.

        The input of a new run is read to its end. `on_rows` gets the number of rows read so far,
        `on_check` the bytes of published files that have been checked.

        Raises:
            IntegrityError: Something in the directory is not as it was written.
        """
        job, run_dir = self.job, self.run_dir
        source = open_files(job.inputs)
        plan = read_plan(run_dir.plan)
        if plan is not None and run_dir.duplicates.exists():
            scan = Scan.from_dict(plan["scan"], DuplicateIndex.load(run_dir.duplicates))
        else:
            scan = scan_input(job, source, on_rows).keep_types(plan["scan"] if plan is not None else {})
        plan = plan or make_plan(job, scan)
        if scan.to_dict() != plan["scan"]:
            raise IntegrityError(
                f"{source.shown} does not match {run_dir.plan}; nothing was changed\n"
                "  restore the input that the run began with, or name another directory with -o"
            )
        self.plan = plan
        self.assembler = make_assembler(job, source, scan, plan)
        self.writer = WriterEpoch(plan_digest=plan_digest(plan), epoch=0, boot=read_boot_id())
        self.shards = read_shards(plan)
        latest = read_ledger(run_dir.ledger, self.writer.plan_digest).latest
        self.states = [inspect_shard(run_dir, shard, latest, self.writer) for shard in self.shards]
        self.was_published = all(shard.number in latest for shard in self.shards)
        check_parts(run_dir, self.states, on_check or (lambda done, total: None))

    @contextmanager
    def begin(self, reopen: FailureChoice | None = None) -> Iterator[RunStore]:
        """Begin the next epoch and open the run for writing during the block.

        Failed samples that `reopen` selects become missing again.
        """
        owner = self.lock.begin_epoch()
        self.run_dir.create()
        self._write_plan()
        self.writer = dataclasses.replace(self.writer, epoch=owner.epoch)
        with ExitStack() as stack:
            stack.enter_context(keep_log(self.run_dir.run_log))
            log = stack.enter_context(closing(EventLog.open(self.run_dir.events, read_time)))
            self.events.subscribe(log.write)
            stack.callback(self.events.unsubscribe, log.write)
            self.events.publish(AttemptStarted(epoch=owner.epoch, pid=owner.pid, host=owner.host))
            states = self.states
            if reopen is not None:
                # A crash between the two leaves a run without its manifest, which the next attempt writes.
                withdraw_manifest(self.run_dir)
                self.events.publish(FailedReopened(code=reopen.code))
                states = self.reopener.reopen(states, reopen)
            remove_leftovers(self.run_dir, states)
            if self.mirror is not None:
                _start_mirror(self.mirror, self.writer.plan_digest, states)
            self.store = self._open_store(states)
            self.ended_before = self.store.finished + self.store.failed
            yield stack.enter_context(self.store)
            if self.mirror is not None:
                self.mirror.settle()

    def complete_mirror(self) -> None:
        """Upload a complete run to its object store, if it has one."""
        if self.mirror is not None:
            _start_mirror(self.mirror, self.writer.plan_digest, self.states)
            self.mirror.settle()

    def _write_plan(self) -> None:
        """Write the plan of a new run, and the job as it was last specified."""
        run_dir = self.run_dir
        if not (run_dir.plan.exists() and run_dir.duplicates.exists()):
            # Before the plan: a run with a plan has everything that the plan needs.
            publish_bytes(run_dir.duplicates, *self.scan.duplicates.encode())
        write_job(run_dir.job, self.job.explicit)
        write_plan_once(run_dir.plan, self.plan)

    def _open_store(self, states: Sequence[ShardState]) -> RunStore:
        store = RunStore(
            run_dir=self.run_dir,
            shards=self.shards,
            states=list(states),
            writer=self.writer,
            ledger=PartLedger.open(self.run_dir.ledger, self.writer),
            publish=self.events.publish,
            clock=self.clock,
            assembler=self.assembler,
        )
        if self.mirror is not None:
            store.on_published, store.check = self.mirror.submit, self.mirror.check
        return store


@contextmanager
def lock_run(
    job: ResolvedJob, *, claims_remote: bool = False, drain: DrainRequest | None = None
) -> Iterator[RunSession]:
    """Lock the job's run directory during the block; create it if it does not exist.

    With `claims_remote`, an output in an object store is claimed there too, for writing. A directory
    that was created here is removed again if no run has begun in it: a refused input leaves nothing. A signal
    that `drain` has got limits the wait for the store.
    """
    drain = drain or DrainRequest()
    started = time.monotonic()
    run_dir = RunDir(job.output)
    # The innermost first.
    made = [path for path in (run_dir.hidden, *run_dir.hidden.parents) if not path.exists()]
    make_directory(run_dir.hidden)
    lock = RunLock(run_dir, read_time())
    lock.take()
    try:
        refuse_other_identity(job, run_dir)  # Another process may have begun a run in the meantime.
        with ExitStack() as stack:
            mirror = None
            if job.remote is not None and claims_remote:
                claimed = claim_remote(
                    job.remote, run_dir, lock, job.identity, lambda: drain.signalled_seconds
                )
                mirror = stack.enter_context(claimed)
            session = RunSession(job=job, run_dir=run_dir, lock=lock, mirror=mirror, started=started)
            session.drain = drain
            yield session
    finally:
        if run_dir.hidden in made and not run_dir.plan.exists():
            remove_unbegun(run_dir, made)
        lock.release()


def _start_mirror(mirror: Mirror, plan_digest: str, states: Sequence[ShardState]) -> None:
    mirror.begin(plan_digest)
    for state in states:
        if isinstance(state, Published):
            mirror.submit(state.shard, state.shard_entry)


def tidy_complete_run(job: ResolvedJob) -> None:
    """Remove what a killed retry left in a complete run, and save the job if it is missing.

    Changes nothing if there is nothing to fix, or if another process has the run.
    """
    run_dir = RunDir(job.output)
    if run_dir.job.exists() and not list_temporary_files(run_dir):
        return
    with suppress(RunLocked), lock_run(job):
        # Under the lock: leftovers may have been another process's unfinished work.
        remove_leftovers(run_dir, ())
        if not run_dir.job.exists():
            write_job(run_dir.job, job.explicit)


def read_time() -> datetime:
    """Return the wall time with its zone."""
    return datetime.now().astimezone()
