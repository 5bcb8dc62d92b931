"""The simulated world of a schedule: its disk, clock and boot, and what was promised in it so far."""

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from simulation.disk import DiskFault, SimulatedDisk, use_disk
from simulation.faults import Violation
from simulation.jobs import SimulatedJob
from simulation.pool import Clock
from simulation.schedule import Attempt, Shape
from simulation.store import LEASE_SECONDS, SimulatedStore, use_store
from synthia_batch.core.types import Request
from synthia_batch.errors import RunLocked
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.results.verify.verify import verify_run
from synthia_batch.runner.directory.session import lock_run
from synthia_batch.storage import lock as locks
from synthia_batch.storage.journal.frames import scan_frames
from synthia_batch.storage.journal.writer import SYNC_SECONDS

Made = tuple[int, int]
"""A sample's ordinal and the turn of it, counted from 0; -1 for the whole sample."""


@dataclass(kw_only=True)
class World:
    """`promised` has what was finished and must not be made again; `unsynced` what power loss may take.

    `finished` are the promised samples that did not fail.
    """

    simulated: SimulatedJob
    disk: SimulatedDisk
    seed: int
    clock: Clock = field(default_factory=Clock)
    promised: set[Made] = field(default_factory=set)
    unsynced: set[Made] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)
    has_transient_failures: bool = False
    store: SimulatedStore = field(init=False)
    _boots: int = 0
    _other_stages: dict[Path, tuple[set[Made], set[Made], set[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._boot_id = self.directory.parent / "boot"
        self.disk.on_journal_removed = self._promise
        self.store = SimulatedStore(self.clock, Random(f"store {self.seed}"), self.disk.make_request)
        self._boot()

    @property
    def job(self) -> ResolvedJob:
        return self.simulated.job

    @property
    def shape(self) -> Shape:
        return self.simulated.shape

    @property
    def directory(self) -> Path:
        return self.job.output

    def enter(self, job: ResolvedJob) -> None:
        """Go on to the run of `job`, a stage of a pipeline. What others were promised stays so."""
        if job.output == self.directory:
            return
        self._other_stages[self.directory] = (self.promised, self.unsynced, self.finished)
        self.simulated = replace(self.simulated, job=job)
        nothing: tuple[set[Made], set[Made], set[int]] = (set(), set(), set())
        self.promised, self.unsynced, self.finished = self._other_stages.pop(job.output, nothing)

    def begin_attempt(self, attempt: Attempt) -> None:
        """Begin a process that meets what `attempt` says."""
        if attempt.loses_machine:
            self.disk.forget()
            self._boot()
            self.promised.clear()
            self.finished.clear()
            self.unsynced.clear()  # But for what is in the store: see published_files_are_final.
            self.clock.now += LEASE_SECONDS
        self.store.fault = attempt.weather.store
        self.store.on_wait = lambda: None
        use_store(self.store)
        hooks: dict[int, Callable[[], None]] = {}
        if attempt.reader_at is not None:
            hooks[attempt.reader_at] = self._read_along
        if attempt.intruder_at is not None:
            hooks[attempt.intruder_at] = self._intrude
        self._unsynced_before = self.disk.list_unsynced()
        self._unsynced_since: dict[tuple[int, int], float] = {}
        self.disk.begin(DiskFault(attempt.ending, attempt.at, attempt.half, hooks))
        self._attempt = attempt
        use_disk(self.disk)

    def end_attempt(self) -> None:
        """End the process, and the power with it if that is how it ends."""
        use_disk(None)
        self.disk.end()
        is_loss = self._attempt.ending == "power loss" and self.disk.is_dead
        for content in self.disk.list_journals(synced=True):
            self._promise(content)
        if is_loss:
            self.unsynced.clear()
            self.disk.lose_power()
            self._boot()
        else:
            self.unsynced = {
                made for content in self.disk.list_journals(synced=False) for made in list_made(content)
            }

    def note_request(self, request: Request) -> None:
        """Note that an engine is asked for `request`."""
        if request.ordinal < 0:
            return
        for made in ((request.ordinal, -1), (request.ordinal, request.turn)):
            if made in self.promised or made in self.unsynced:
                raise Violation("nothing_finished_is_made_again", f"sample and turn {made}")

    def note_poll(self) -> None:
        """Note that the driver waits for its pool: what it wrote a second ago is synced by now."""
        now, unsynced = self.clock(), self.disk.list_unsynced() - self._unsynced_before
        self._unsynced_since = {write: self._unsynced_since.get(write, now) for write in unsynced}
        if any(now - since > SYNC_SECONDS for since in self._unsynced_since.values()):
            raise Violation("power_loss_costs_a_second", f"not synced for more than {SYNC_SECONDS} s")

    def forget(self, ordinals: set[int]) -> None:
        """Allow that these samples are made again, from their first turn: a retry was asked for."""
        if not self.shape.drops and (lost := ordinals & self.finished):
            raise Violation("nothing_finished_counts_as_failed", f"sample {min(lost)}")
        self.promised = {made for made in self.promised if made[0] not in ordinals}
        self.unsynced = {made for made in self.unsynced if made[0] not in ordinals}

    def _promise(self, journal: bytes) -> None:
        self.promised.update(list_made(journal))
        self.finished.update(list_finished(journal))

    def _boot(self) -> None:
        self._boots += 1
        self._boot_id.write_text(f"boot {self._boots}")
        locks._BOOT_ID = self._boot_id

    def _intrude(self) -> None:
        """Try to start the same run beside this one: it is refused once this one is the owner."""
        fault, self.disk.fault = self.disk.fault, DiskFault()
        try:
            with suppress(RunLocked), lock_run(self.job):
                if self.disk.has_owner:
                    raise Violation("one_owner", "a second process has the lock")
        finally:
            self.disk.fault = fault

    def _read_along(self) -> None:
        if not (self.directory / ".synthia/plan.json").exists():
            return
        findings = verify_run(self.directory, lambda done, total: None).findings
        if findings:
            raise Violation("readers_find_no_fault", str(findings[0]))


def list_finished(journal: bytes) -> Iterator[int]:
    """Yield the samples that finished in the whole frames of a journal, up to the first damage."""
    for frame in scan_frames(io.BytesIO(journal)):
        if frame.value is None:
            return
        if "finished" in frame.value:
            yield frame.value["finished"]


def list_made(journal: bytes) -> Iterator[Made]:
    """Yield what the whole frames of a journal hold, up to the first damage."""
    for frame in scan_frames(io.BytesIO(journal)):
        if frame.value is None:
            return
        value = frame.value
        if "turn" in value:
            yield value["of"], value["turn"]
        elif "finished" in value or "failed" in value:
            yield value.get("finished", value.get("failed")), -1


def open_world(simulated: SimulatedJob, seed: int) -> World:
    """Return a new world: an empty disk."""
    disk = SimulatedDisk(simulated.job.output, Random(f"disk {seed}"))
    return World(simulated=simulated, disk=disk, seed=seed)
