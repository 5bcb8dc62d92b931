"""One attempt of a run: the package's own session, driver, scheduler and storage in a simulated world."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from random import Random

from simulation.faults import Killed
from simulation.pool import SimulatedPool
from simulation.schedule import Attempt
from simulation.world import World
from synthia_batch.core.events import Event, EventBus
from synthia_batch.core.shutdown import DrainReason, DrainRequest
from synthia_batch.errors import SynthiaBatchError
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner import retry, run
from synthia_batch.runner.directory.reopen import FailureChoice
from synthia_batch.runner.directory.session import RunSession
from synthia_batch.runner.pipeline import run_pipeline
from synthia_batch.runner.subset import pick_probe
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.workers.pools.startup import StartedPool

ALL_FAILED = FailureChoice(code=None)


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
    """Do what the command does, in a session of `_open_session`; return whether the run is complete."""

    def open_session(job: ResolvedJob, *_: object, **__: object) -> AbstractContextManager[RunSession]:
        if attempt.kind == "pipeline":
            world.enter(job)
        return _open_session(world, attempt, draw)

    retry.open_session = run.open_session = open_session  # type: ignore[assignment]
    job, display = world.job, NoDisplay()
    match attempt.kind:
        case "run":
            run.run_resolved_job(job, display)  # type: ignore[arg-type]
        case "retry":
            retry._reopen_and_run(job, ALL_FAILED, display, EventBus(), force=True)  # type: ignore[arg-type]
        case "subset":
            _run_subset(world, attempt, draw)
        case "pipeline":
            assert world.simulated.pipeline is not None
            return run_pipeline(world.simulated.pipeline, [], NoDisplay).is_complete  # type: ignore[arg-type]
    return RunDir(job.output).manifest.exists()


def _run_subset(world: World, attempt: Attempt, draw: Random) -> None:
    if read_manifest(RunDir(world.job.output).manifest) is not None:
        run.run_resolved_job(world.job, NoDisplay())  # type: ignore[arg-type]
        return
    with _open_session(world, attempt, draw) as session:
        subset = pick_probe(session.shards, draw.randint(1, world.shape.total))
        run.run_attempt(session, NoDisplay(), subset=subset)  # type: ignore[arg-type]


@contextmanager
def _open_session(world: World, attempt: Attempt, draw: Random) -> Iterator[RunSession]:
    """Stand for the package's: with a simulated clock and pool, and signals at the attempt's second."""
    clock = world.clock
    drain = DrainRequest(clock=clock, wall_clock=clock)
    signals = _Signals(world, attempt, draw, drain)
    # Also while the store is waited for.
    world.store.on_wait = signals.ask_once
    with run.lock_run(world.job, claims_remote=True, drain=drain) as session:
        session.clock, session.started = clock, clock()
        pool = SimulatedPool(
            shape=world.shape,
            attempt=attempt,
            clock=clock,
            draw=draw,
            on_request=world.note_request,
            at_second=signals.ask,
            on_poll=world.note_poll,
            alone=set(world.shape.fatal),
        )
        session.starter = Starter(pool)  # type: ignore[assignment]
        session.inspect()
        if attempt.kind == "retry":
            world.forget(set(session.reopener.list_chosen(session.states, ALL_FAILED)))
        yield session


class _Signals:
    """Whoever asks the attempt to drain: once, or twice for an interrupt."""

    def __init__(self, world: World, attempt: Attempt, draw: Random, drain: DrainRequest) -> None:
        self._world = world
        self._attempt = attempt
        self._draw = draw
        self._drain = drain
        self._began = world.clock()
        self._asked = 0

    def ask(self) -> None:
        """Ask, if it is time. Raises KeyboardInterrupt at the second interrupt."""
        if not self._asked:
            self.ask_once()
        elif self._attempt.ending == "interrupt" and self._asked < 2:
            self._asked += 1
            self._drain.ask(DrainReason.INTERRUPT)

    def ask_once(self) -> None:
        """Ask, if it is time and nobody has."""
        is_asked = self._asked or self._attempt.ending not in ("drain", "interrupt")
        if is_asked or self._world.clock() - self._began < self._attempt.at or self._world.disk.is_dead:
            return
        self._asked = 1
        is_drain = self._attempt.ending == "drain"
        reasons = (DrainReason.TERMINATE, DrainReason.INTERRUPT) if is_drain else (DrainReason.INTERRUPT,)
        self._drain.ask(self._draw.choice(reasons))
