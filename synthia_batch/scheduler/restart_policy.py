"""When a worker starts again, when it is given up, and when its silence counts as death. Pure."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

STRIKES = 5
"""Deaths in a row, with no sample made between, after which a worker is given up. A death that
brings the search for a fatal sample on is none of them."""
FIRST_PAUSE_SECONDS = 0.2
"""Before the first restart. Short: most deaths are a sample's, and the search for it waits."""
PAUSE_FACTOR = 3.0
"""Each strike makes the pause longer: 0.2, 0.6, 1.8, 5.4, 16 s, for what mends itself in time."""
STUCK_LOADS = 2
"""Loads in a row that did not end in time after which a worker is given up: each costs an hour."""
SHARE_UNHEARD = 4
"""Between two looks at the workers no more than a quarter of the watchdog's patience counts as silence."""
MOST_HALVINGS = 6
"""Times that an engine's memory is halved before running out of it is a death like others."""


class WorkerStatus(NamedTuple):
    """What a worker is at: starting, loading, ready, restarting or given up; and how often it began again."""

    state: str
    restarts: int


@dataclass(slots=True)
class _WorkerState:
    """What is known of one worker. `epoch` is None while it is not ready; `last_epoch` is that of
    its latest death, `load_failures` counts deaths in a row before it was ready. `loading` is the
    epoch under which it loads since `loading_since`, None while it waits for room or is ready.
    """

    epoch: int | None = None
    last_epoch: int = 0
    strikes: int = 0
    load_failures: int = 0
    loading: int | None = None
    loading_since: float = 0.0
    stuck_loads: int = 0
    halvings: int = 0
    restarts: int = 0
    restart_at: float | None = None
    is_given_up: bool = False
    steps: int = -1
    stepped_at: float = 0.0


@dataclass(slots=True)
class RestartPolicy:
    """Keeps the books on every worker. Times are seconds of one monotonic clock.

    A worker that holds samples and whose engine makes no step for `watchdog_seconds` is hung, and so
    is one that has not loaded its engine in `load_timeout_seconds`. No sign of progress makes that
    longer: vLLM's log grows while it hangs, too (it says every minute what it waits for). `has_welcomed`
    says that some engine has loaded.
    """

    watchdog_seconds: float
    load_timeout_seconds: float = math.inf
    has_welcomed: bool = False
    _posts: dict[int, _WorkerState] = field(default_factory=dict)
    _looked_at: float = math.inf

    @property
    def ready(self) -> list[int]:
        """The workers that can be fed."""
        return [worker for worker, post in self._posts.items() if post.epoch is not None]

    @property
    def staff(self) -> int:
        """Workers that are there or may come back."""
        return sum(not post.is_given_up for post in self._posts.values())

    def describe(self) -> dict[int, WorkerStatus]:
        """Return what each worker is at."""
        return {
            worker: WorkerStatus(_describe_state(post), post.restarts) for worker, post in self._posts.items()
        }

    def register(self, worker: int) -> None:
        """Count in a worker that is starting."""
        self._posts[worker] = _WorkerState()

    def note_loading(self, worker: int, epoch: int, now: float) -> None:
        """Take note that `worker` has found room and begins to load."""
        post = self._posts[worker]
        post.loading, post.loading_since = epoch, now

    def mark_ready(self, worker: int, epoch: int, now: float) -> None:
        """Take note that `worker` can be fed."""
        self.has_welcomed = True
        post = self._posts[worker]
        post.epoch, post.steps, post.stepped_at = epoch, -1, now
        post.loading = None
        post.load_failures = post.stuck_loads = 0

    def believes(self, worker: int, epoch: int) -> bool:
        """Whether a message of samples comes from the worker that is there now."""
        return self._posts[worker].epoch == epoch

    def is_news(self, worker: int, epoch: int) -> bool:
        """Whether a message comes from a start of `worker` that is not known to be dead."""
        return epoch > self._posts[worker].last_epoch

    def note_steps(self, worker: int, steps: int, now: float) -> None:
        """Take note of how many steps the engine of `worker` has made."""
        post = self._posts[worker]
        if steps != post.steps:
            post.steps, post.stepped_at = steps, now

    def note_made(self, worker: int) -> None:
        """Take note that `worker` made a sample: what went before is forgiven."""
        self._posts[worker].strikes = 0

    def note_look(self, now: float) -> None:
        """Take note that the workers were heard until now.

        Where that took long, as when a disk stood still, they were silent because nobody listened, and
        what they said meanwhile is heard next.
        """
        unheard = max(0.0, now - self._looked_at - self.watchdog_seconds / SHARE_UNHEARD)
        self._looked_at = now
        for post in self._posts.values():
            post.stepped_at = min(now, post.stepped_at + unheard)
            post.loading_since = min(now, post.loading_since + unheard)

    def find_hung(self, busy: Collection[int], now: float) -> list[tuple[int, int]]:
        """Return the hung workers with their epochs. Those that are not `busy` have nothing to step for."""
        hung = []
        for worker, post in self._posts.items():
            if post.epoch is None or worker not in busy:
                post.stepped_at = now
            elif now - post.stepped_at >= self.watchdog_seconds:
                hung.append((worker, post.epoch))
        return hung

    def find_stuck_loads(self, now: float) -> list[tuple[int, int]]:
        """Return the workers, with their epochs, whose engines should have been loaded by now."""
        return [
            (worker, post.loading)
            for worker, post in self._posts.items()
            if post.loading is not None and now - post.loading_since >= self.load_timeout_seconds
        ]

    def mark_dead(self, worker: int, epoch: int, *, is_strike: bool, now: float) -> float | None:
        """Take note of a death; return the seconds until `worker` starts again, None if it never does."""
        post = self._posts[worker]
        post.stuck_loads += (worker, epoch) in self.find_stuck_loads(now)
        post.load_failures += post.epoch is None
        post.epoch, post.loading, post.last_epoch = None, None, epoch
        post.strikes += is_strike
        post.is_given_up = post.strikes > STRIKES or post.stuck_loads >= STUCK_LOADS
        if post.is_given_up:
            return None
        post.restarts += 1
        pause = FIRST_PAUSE_SECONDS * (PAUSE_FACTOR ** (post.strikes - 1) if is_strike else 1)
        post.restart_at = now + pause
        return pause

    def fails_to_load(self, worker: int) -> bool:
        """Whether `worker`, which has died now, died while it was loading the last time too.

        An engine whose core is a process of its own does not say what that died of. At the start
        the likeliest is memory.
        """
        post = self._posts[worker]
        return post.epoch is None and post.load_failures >= 1

    def halve(self, worker: int) -> bool:
        """Have `worker` start with half the memory from now on; False where that has been done enough."""
        post = self._posts[worker]
        if post.halvings == MOST_HALVINGS:
            return False
        post.halvings += 1
        return True

    def count_halvings(self, worker: int) -> int:
        """Return how many times the memory of `worker` was halved."""
        return self._posts[worker].halvings

    def take_due(self, now: float) -> list[int]:
        """Return the workers whose pause is over, once."""
        due = [w for w, post in self._posts.items() if post.restart_at is not None and now >= post.restart_at]
        for worker in due:
            self._posts[worker].restart_at = None
        return due


def _describe_state(post: _WorkerState) -> str:
    if post.is_given_up:
        return "given up"
    if post.epoch is not None:
        return "ready"
    if post.loading is not None:
        return "loading"
    return "restarting" if post.restarts else "starting"
