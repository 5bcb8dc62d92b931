"""One attempt of a run: the package's own session, driver, scheduler and storage in a simulated world."""

from dataclasses import dataclass
from random import Random

from simulation.faults import Killed
from simulation.pool import SimulatedPool
from simulation.schedule import Attempt
from simulation.world import World
from synthia_batch.core.events import Event
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.errors import SynthiaBatchError
from synthia_batch.runner.directory.plan import refuse_other_identity
from synthia_batch.runner.directory.reopen import FailureChoice
from synthia_batch.runner.directory.session import RunSession, lock_run, tidy_complete_run
from synthia_batch.runner.retry import _rollback
from synthia_batch.runner.run import _complete_remote, run_attempt
from synthia_batch.runner.subset import pick_probe
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.recovery import check_complete
from synthia_batch.workers.pools.startup import StartedPool


class NoDisplay:
    """A display that shows nothing."""

    def observe(self, event: Event) -> None:
        """Show nothing."""

    def show_check(self, done: int, total: int) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Starter:
    """Hands over a pool that has just started."""

    pool: SimulatedPool

    def begin(self) -> None:
        """The pool starts when it is taken over."""

    def take_over(self) -> StartedPool:
        self.pool.start()
        return StartedPool(pool=self.pool)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: `error` is what the process would have said, `is_killed` that it said nothing."""

    is_complete: bool = False
    is_killed: bool = False
    error: SynthiaBatchError | KeyboardInterrupt | None = None


def make_attempt(world: World, attempt: Attempt, draw: Random) -> Ended:
    """Make `attempt` in `world`, as a process of its own would, up to its end."""
    world.begin_attempt(attempt)
    try:
        complete = _run(world, attempt, draw)
        return Ended(is_complete=complete)
    except Killed:
        return Ended(is_killed=True)
    except (SynthiaBatchError, KeyboardInterrupt) as exc:
        if isinstance(exc, KeyboardInterrupt) and attempt.ending != "interrupt":
            raise  # Somebody's real Ctrl-C.
        # What a dying process raises while it unwinds is not heard.
        return Ended(is_killed=True) if world.disk.is_dead else Ended(error=exc)
    except Exception:
        if world.disk.is_dead:
            return Ended(is_killed=True)
        raise
    finally:
        world.end_attempt()


def _run(world: World, attempt: Attempt, draw: Random) -> bool:
    job = world.job
    run_dir = RunDir(job.output)
    refuse_other_identity(job, run_dir)
    manifest = read_manifest(run_dir.manifest)
    if attempt.kind != "retry" and manifest is not None and run_dir.plan.exists():
        check_complete(run_dir, manifest, lambda done, total: None)
        tidy_complete_run(job)
        _complete_remote(job, NoDisplay())  # type: ignore[arg-type]
        return True
    with lock_run(job, claims_remote=True) as session:
        _equip(session, world, attempt, draw)
        session.inspect()
        if attempt.kind == "retry":
            _retry(session, world)
        else:
            subset = (
                None
                if attempt.kind == "run"
                else pick_probe(session.shards, draw.randint(1, world.shape.total))
            )
            run_attempt(session, NoDisplay(), subset=subset)  # type: ignore[arg-type]
        return run_dir.manifest.exists()


def _retry(session: RunSession, world: World) -> None:
    choice = FailureChoice(code=None)
    outcomes = [
        outcome for state in session.states for outcome in session.reopener.read_outcomes(state).values()
    ]
    chosen = {outcome.ordinal for outcome in outcomes if choice.takes(outcome)}
    if not chosen and read_manifest(session.run_dir.manifest) is not None:
        session.complete_mirror()
        return
    world.forget(chosen)
    with _rollback(session):
        run_attempt(session, NoDisplay(), reopen=choice)  # type: ignore[arg-type]


def _equip(session: RunSession, world: World, attempt: Attempt, draw: Random) -> None:
    """Give the session its drain request, its clock and its pool."""
    clock = world.clock
    session.clock, session.started = clock, clock()
    session.drain = DrainRequest(clock=clock, wall_clock=clock)
    began = clock()
    asked = 0

    def at_second(now: float) -> None:
        nonlocal asked
        if now - began < attempt.at or world.disk.is_dead:
            return
        if attempt.ending == "drain" and not asked:
            asked = 1
            session.drain.ask(draw.choice((DrainReason.TERMINATE, DrainReason.INTERRUPT)))
        elif attempt.ending == "interrupt" and asked < 2:
            asked += 1
            session.drain.ask(DrainReason.INTERRUPT)

    pool = SimulatedPool(
        shape=world.shape,
        attempt=attempt,
        clock=clock,
        draw=draw,
        on_request=world.note_request,
        at_second=at_second,
        alone=set(world.shape.fatal),
    )
    session.starter = Starter(pool)  # type: ignore[assignment]
