"""When a worker is restarted, when it is given up, and when its silence counts as a hang. Pure."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from synthia_batch.workers.engine import NO_REDUCTION, Reduction

STRIKES = 5
"""Deaths in a row, with no sample generated between, after which a worker is given up. A death that
narrows down which sample crashes engines does not count."""
FIRST_PAUSE_SECONDS = 0.2
"""Before the first restart. Short: most deaths are caused by a sample, and the search for it waits."""
PAUSE_FACTOR = 3.0
"""Each strike makes the pause longer: 0.2, 0.6, 1.8, 5.4, 16 s, for causes that pass with time."""
STUCK_LOADS = 2
"""Loads in a row that exceeded their time after which a worker is given up: each costs an hour."""
SHARE_UNHEARD = 4
"""Between two looks at the workers, at most a quarter of the watchdog's time counts as silence."""
MOST_HALVINGS = 6
"""How often an engine's batch is halved before running out of memory counts like any other death."""
MOST_LOAD_FAILURES = 2
"""How often an engine that ran out of memory while loading is loaded with less; then the worker is lost."""


class WorkerStatus(NamedTuple):
    """A worker's state (starting, loading, ready, restarting or given up) and number of restarts."""

    state: str
    restarts: int


@dataclass(slots=True)
class _WorkerState:
    """The state of one worker. `epoch` is None while it is not ready; `last_epoch` is that of its
    latest death. `load_failures` counts deaths in a row before it was ready. `loading` is the epoch
    that has been loading since `loading_since`, None while it waits for room or is ready. `reduction` is what
    it is started with.
    """

    epoch: int | None = None
    last_epoch: int = 0
    strikes: int = 0
    load_failures: int = 0
    loading: int | None = None
    loading_since: float = 0.0
    stuck_loads: int = 0
    reduction: Reduction = NO_REDUCTION
    restarts: int = 0
    restart_at: float | None = None
    is_given_up: bool = False
    steps: int = -1
    stepped_at: float = 0.0

    @property
    def status(self) -> WorkerStatus:
        if self.is_given_up:
            state = "given up"
        elif self.epoch is not None:
            state = "ready"
        elif self.loading is not None:
            state = "loading"
        else:
            state = "restarting" if self.restarts else "starting"
        return WorkerStatus(state, self.restarts)


@dataclass(slots=True)
class RestartPolicy:
    """Tracks the state of every worker. Times are seconds of one monotonic clock.

    A worker that holds samples is hung if its engine makes no step for `watchdog_seconds`, and so is
    one that does not load its engine within `load_timeout_seconds`. No sign of progress extends
    that: vLLM's log grows even while it hangs (every minute it logs what it waits for).
    `has_loaded_any`: some engine has loaded.
    """

    watchdog_seconds: float
    load_timeout_seconds: float = math.inf
    has_loaded_any: bool = False
    _states: dict[int, _WorkerState] = field(default_factory=dict)
    _looked_at: float = math.inf

    @property
    def ready(self) -> list[int]:
        """The workers that can be given requests."""
        return [worker for worker, state in self._states.items() if state.epoch is not None]

    @property
    def live_workers(self) -> int:
        """The number of workers that are not given up."""
        return sum(not state.is_given_up for state in self._states.values())

    @property
    def statuses(self) -> dict[int, WorkerStatus]:
        return {worker: state.status for worker, state in self._states.items()}

    def register(self, worker: int) -> None:
        self._states[worker] = _WorkerState()

    def mark_loading(self, worker: int, epoch: int, now: float) -> None:
        """Note that `worker` has found room and begins to load."""
        state = self._states[worker]
        state.loading, state.loading_since = epoch, now

    def mark_ready(self, worker: int, epoch: int, now: float, max_num_seqs: int = 0) -> None:
        """Note that `worker` can be given requests. `max_num_seqs` is its batch, 0 if unknown."""
        self.has_loaded_any = True
        state = self._states[worker]
        if not state.reduction.batch_halvings:
            state.reduction = replace(state.reduction, max_num_seqs=max_num_seqs or None)
        state.epoch, state.steps, state.stepped_at = epoch, -1, now
        state.loading = None
        state.load_failures = state.stuck_loads = 0

    def is_current(self, worker: int, epoch: int) -> bool:
        """Whether a message about samples comes from the current epoch of `worker`."""
        return self._states[worker].epoch == epoch

    def is_news(self, worker: int, epoch: int) -> bool:
        """Whether a message comes from an epoch of `worker` that is not known to be dead."""
        return epoch > self._states[worker].last_epoch

    def note_steps(self, worker: int, steps: int, now: float) -> None:
        """Note how many steps the engine of `worker` has made."""
        state = self._states[worker]
        if steps != state.steps:
            state.steps, state.stepped_at = steps, now

    def clear_strikes(self, worker: int) -> None:
        """Forget earlier deaths of `worker`: it generated a sample."""
        self._states[worker].strikes = 0

    def note_look(self, now: float) -> None:
        """Note that messages of the workers were read until now.

        If that was long ago, for example because the disk stalled, the workers were silent because
        nobody listened; the messages they sent meanwhile are read next.
        """
        unheard = max(0.0, now - self._looked_at - self.watchdog_seconds / SHARE_UNHEARD)
        self._looked_at = now
        for state in self._states.values():
            state.stepped_at = min(now, state.stepped_at + unheard)
            state.loading_since = min(now, state.loading_since + unheard)

    def find_hung(self, busy: Collection[int], now: float) -> list[tuple[int, int]]:
        """Return the hung workers with their epochs. Those that are not `busy` need no steps."""
        hung = []
        for worker, state in self._states.items():
            if state.epoch is None or worker not in busy:
                state.stepped_at = now
            elif now - state.stepped_at >= self.watchdog_seconds:
                hung.append((worker, state.epoch))
        return hung

    def find_stuck_loads(self, now: float) -> list[tuple[int, int]]:
        """Return the workers, with their epochs, whose engines should have loaded by now."""
        return [
            (worker, state.loading)
            for worker, state in self._states.items()
            if state.loading is not None and now - state.loading_since >= self.load_timeout_seconds
        ]

    def mark_dead(
        self, worker: int, epoch: int, *, is_strike: bool, now: float, is_last: bool = False
    ) -> float | None:
        """Note a death; return the seconds until `worker` is restarted, None if it never is.

        `is_last`: another start would fail as well.
        """
        state = self._states[worker]
        state.stuck_loads += (worker, epoch) in self.find_stuck_loads(now)
        state.load_failures += state.epoch is None
        state.epoch, state.loading, state.last_epoch = None, None, epoch
        state.strikes += is_strike
        state.is_given_up = is_last or state.strikes > STRIKES or state.stuck_loads >= STUCK_LOADS
        if state.is_given_up:
            return None
        state.restarts += 1
        pause = FIRST_PAUSE_SECONDS * (PAUSE_FACTOR ** (state.strikes - 1) if is_strike else 1)
        state.restart_at = now + pause
        return pause

    def fails_to_load(self, worker: int) -> bool:
        """Whether `worker`, which has just died, also died while loading the time before.

        An engine whose core is a process of its own does not report why that died. While loading,
        the likeliest cause is memory.
        """
        state = self._states[worker]
        return state.epoch is None and state.load_failures >= 1

    def is_ready(self, worker: int) -> bool:
        """Whether `worker` has loaded its engine and is not known to be dead."""
        return self._states[worker].epoch is not None

    def reduce(self, worker: int) -> bool:
        """Restart `worker` with less memory from now on; False if that was done often enough.

        Call it before `mark_dead`: an engine that dies while loading gets less memory, others a smaller
        batch.
        """
        state = self._states[worker]
        before = state.reduction
        if state.epoch is None:
            if before.load_failures == MOST_LOAD_FAILURES:
                return False
            state.reduction = replace(before, load_failures=before.load_failures + 1)
            return True
        if before.batch_halvings == MOST_HALVINGS:
            return False
        state.reduction = replace(before, batch_halvings=before.batch_halvings + 1)
        return True

    def get_reduction(self, worker: int) -> Reduction:
        """Return how much less memory than by default `worker` is started with."""
        return self._states[worker].reduction

    def take_due(self, now: float) -> list[int]:
        """Return the workers whose pause is over, once."""
        due = [
            w for w, state in self._states.items() if state.restart_at is not None and now >= state.restart_at
        ]
        for worker in due:
            self._states[worker].restart_at = None
        return due
