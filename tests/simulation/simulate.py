"""Runs schedules: their attempts one after another, then calm ones, and every invariant after each."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from simulation import disk as disks
from simulation import invariants
from simulation.attempt import make_attempt
from simulation.faults import Violation
from simulation.jobs import SimulatedJob, read_output, write_job
from simulation.pipeline import add_stages, try_stages
from simulation.schedule import CALM, Schedule, Shape
from simulation.selection import make_selection, try_selections
from simulation.shortcuts import spare, take_shortcuts
from simulation.world import World, open_world

MEMORY = Path("/dev/shm")


class Simulator:
    """Runs schedules in `directory`, which is in memory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._jobs: dict[Shape, SimulatedJob] = {}
        disks.install()
        take_shortcuts()

    def run(self, schedule: Schedule) -> Violation | None:
        """Return the first violation in `schedule`, None if every invariant holds."""
        try:
            self._run(schedule)
        except Violation as violation:
            return violation
        except Exception as exc:
            return Violation("nothing_unexpected_is_raised", f"{type(exc).__name__}: {exc}")
        finally:
            disks.use_disk(None)
        return None

    def _run(self, schedule: Schedule) -> None:
        world = self._open(self.find_job(schedule.shape), schedule.seed)
        for number, attempt in enumerate(schedule.attempts):
            world.has_transient_failures |= attempt.weather.transient > 0
            ended = make_attempt(world, attempt, Random(f"{schedule.seed} attempt {number}"))
            invariants.only_a_cause_ends_an_attempt(attempt, ended)
            invariants.published_files_are_final(world)
        draw = Random(f"{schedule.seed} calm")
        invariants.a_calm_attempt_completes_the_run(make_attempt(world, CALM, draw))
        if world.has_transient_failures:
            retry = dataclasses.replace(CALM, kind="retry")
            invariants.a_calm_attempt_completes_the_run(make_attempt(world, retry, draw))
        invariants.bytes_equal_the_undisturbed_run(world)
        invariants.nothing_is_left_over(world)
        invariants.verify_is_clean(world)
        if schedule.shape.has_parquet:
            try_selections(world.directory, schedule.shape, world.simulated.selected, draw)
        if schedule.shape.is_in_pipeline:
            try_stages(world.simulated, schedule.seed)

    def find_job(self, shape: Shape) -> SimulatedJob:
        """Return the job of `shape` with the files of its undisturbed run."""
        if shape not in self._jobs:
            job = SimulatedJob(shape, write_job(shape, self._directory), {})
            world = self._open(job, 0)
            ended = make_attempt(world, CALM, Random(0))
            invariants.a_calm_attempt_completes_the_run(ended)
            self._jobs[shape] = dataclasses.replace(
                job,
                expected=read_output(world.directory),
                selected=make_selection(world.directory, shape) if shape.has_parquet else {},
            )
            if shape.is_in_pipeline:
                self._jobs[shape] = add_stages(self._jobs[shape], self._directory)
        return self._jobs[shape]

    def _open(self, job: SimulatedJob, seed: int) -> World:
        spare(has_parquet=job.shape.has_parquet)
        shutil.rmtree(job.job.output.with_name("selected"), ignore_errors=True)
        shutil.rmtree(job.job.output, ignore_errors=True)
        shutil.rmtree(job.job.output.with_name("stages"), ignore_errors=True)
        return open_world(job, seed)


@contextmanager
def open_simulator() -> Iterator[Simulator]:
    """A simulator with a directory of its own in memory."""
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        yield Simulator(Path(name))
