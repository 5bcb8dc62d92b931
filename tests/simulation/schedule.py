"""What happens in a schedule: its job, its attempts, and what befalls each. Drawn from one seed."""

import dataclasses
from dataclasses import dataclass
from random import Random
from typing import Literal

Kind = Literal["run", "subset", "retry", "pipeline"]
Ending = Literal["none", "kill", "power loss", "full disk", "failed sync", "drain", "interrupt"]
ENDINGS: tuple[Ending, ...] = ("none", "kill", "power loss", "full disk", "failed sync", "drain", "interrupt")
SHAPES = 48
"""Different jobs among a thousand seeds: the undisturbed run of each is made once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A job: its rows, what each is asked, and which samples end an engine (`fatal`, by ordinal).

    `turns` is the number of questions of a row, 0 for prompts. `bad_row` is a row that cannot be asked.
    `is_remote`: the output is in an object store. `candidates` are the most answers that are made until one
    is accepted, 0 where every answer is.
    """

    number: int
    rows: int
    systems: int
    samples: int
    turns: int
    samples_per_file: int
    flags: tuple[str, ...]
    drops: bool
    bad_row: int | None
    fatal: frozenset[int]
    is_remote: bool = False
    candidates: int = 0

    @property
    def total(self) -> int:
        """Samples of the job."""
        return self.rows * self.systems * self.samples

    @property
    def has_parquet(self) -> bool:
        """Whether its parts are real ones, and its events are kept: of one job in 16. See shortcuts."""
        return self.number % 16 == 0

    @property
    def is_in_pipeline(self) -> bool:
        """Whether it is the first stage of a pipeline, too."""
        return self.number % SHAPES == 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """Chances of what may befall an engine or a message, each between 0 and 1; all 0 is calm."""

    death: float = 0.0
    hang: float = 0.0
    memory: float = 0.0
    node: float = 0.0
    load: float = 0.0
    late: float = 0.0
    lost: float = 0.0
    transient: float = 0.0
    store: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process: its workers, and how it ends.

    `at` is the disk call, counted from 1, at which `ending` comes, or the second for a drain; `half` is the
    share of a write that a kill lets through. `intruder_at` is the disk call at which somebody else tries to
    start the same run. `loses_machine`: it comes after the loss of the machine with the state directory.
    """

    kind: Kind
    workers: int
    capacity: int
    weather: Weather
    ending: Ending
    at: int
    half: float
    intruder_at: int | None = None
    reader_at: int | None = None
    loses_machine: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A seed's job and attempts. After them come calm ones, until the run is complete."""

    seed: int
    shape: Shape
    attempts: tuple[Attempt, ...]


CALM = Attempt(
    kind="run", workers=2, capacity=4, weather=Weather(), ending="none", at=0, half=0.0
)  # fmt: skip


def draw_schedule(seed: int) -> Schedule:
    """Return the schedule of `seed`, always the same one."""
    draw = Random(f"schedule {seed}")
    shape = draw_shape(seed // 1000 * SHAPES + seed % SHAPES)
    attempts: list[Attempt] = []
    for number in range(draw.choice((1, 1, 2, 2, 3))):
        attempt = _draw_attempt(draw, shape, number)
        if attempts and draw.random() < 0.5:
            attempt = _follow(draw, attempts[-1], attempt)
        attempts.append(attempt)
    return Schedule(seed=seed, shape=shape, attempts=tuple(attempts))


def draw_stages(draw: Random, shape: Shape) -> tuple[Attempt, ...]:
    """Return attempts of the pipeline that begins with `shape`, in weather that leaves its bytes alone."""
    attempts: list[Attempt] = []
    for _ in range(draw.randint(1, 3)):
        attempt = _draw_attempt(draw, shape, 0)
        attempts.append(
            dataclasses.replace(
                attempt,
                kind="pipeline",
                at=attempt.at * draw.choice((1, 2, 3)),  # Also in the later stages.
                weather=dataclasses.replace(attempt.weather, transient=0.0, store=0.0),
                intruder_at=None,
                reader_at=None,
                loses_machine=False,
            )
        )
    return tuple(attempts)


def _follow(draw: Random, before: Attempt, attempt: Attempt) -> Attempt:
    """Return `attempt` as one that shows what the one before may have spoilt."""
    if before.ending == "failed sync":
        return dataclasses.replace(attempt, kind="run", ending="power loss", loses_machine=False)
    if before.weather.transient and before.ending in ("none", "drain"):
        # Of a few samples: about the end of its first ones.
        return dataclasses.replace(attempt, kind="retry", ending="kill", at=draw.randint(25, 70))
    return attempt


def draw_shape(number: int) -> Shape:
    """Return the job of that number."""
    draw = Random(f"shape {number}")
    rows, systems, samples = draw.randint(1, 8), draw.choice((1, 1, 2)), draw.choice((1, 1, 2, 3))
    total = rows * systems * samples
    flags = draw.choice(((), (), ("empty", "refusal"), ("duplicate",), ("empty", "duplicate", "refusal")))
    fatal = draw.sample(range(total), min(draw.choice((0, 0, 1, 2)), total // 3))
    shape = Shape(
        number=number,
        rows=rows,
        systems=systems,
        samples=samples,
        turns=draw.choice((0, 0, 2, 3)),
        samples_per_file=draw.choice((total, max(1, total // 2), max(1, total // 3))),
        flags=flags,
        drops=bool(flags) and draw.random() < 0.5,
        bad_row=draw.randrange(rows) if rows > 1 and draw.random() < 0.2 else None,
        fatal=frozenset(fatal),
        is_remote=draw.random() < 0.25,
    )
    # A conversation has no candidates.
    accepts = not shape.turns and draw.random() < 0.4
    return dataclasses.replace(shape, candidates=draw.choice((1, 2, 4))) if accepts else shape


def _draw_attempt(draw: Random, shape: Shape, number: int) -> Attempt:
    ending = draw.choice(ENDINGS)
    # Also at the very end, when the files are published: about six calls a sample, and 60 for the rest.
    calls = 60 + 6 * shape.total
    at = draw.randint(1, 15) if ending in ("drain", "interrupt") else draw.randint(1, calls)
    kinds: tuple[Kind, ...] = ("run", "run", "run", "subset", "retry") if number else ("run", "run", "subset")
    return Attempt(
        kind=draw.choice(kinds),
        workers=draw.randint(1, 4),
        capacity=draw.choice((1, 2, 4, 16)),
        weather=_draw_weather(draw),
        ending=ending,
        at=at,
        half=draw.random(),
        intruder_at=draw.randint(1, calls) if draw.random() < 0.2 else None,
        reader_at=draw.randint(1, calls) if draw.random() < 0.1 else None,
        loses_machine=shape.is_remote and number > 0 and draw.random() < 0.4,
    )


def _draw_weather(draw: Random) -> Weather:
    """Return weather in which most things never happen, and a few often."""
    chances = {field.name: 0.0 for field in dataclasses.fields(Weather)}
    for name in draw.sample(sorted(chances), draw.choice((0, 1, 2, 3))):
        if name != "transient" or draw.random() < 0.2:  # It costs a retry at the end.
            chances[name] = draw.choice((0.02, 0.1, 0.3))
    return Weather(**chances)
