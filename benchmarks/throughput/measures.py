"""From what was seen to numbers. Pure: no processes, no files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from synthia_batch.results.read.history import ProgressEvent, measure_busy_shares

Status = Literal["ok", "failed", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One side in one round; `number` 0 is the trial of a variant.

    Seconds count from the start of the side's process: `seconds` to its end, `ready_seconds` to its
    first engine, `first_seconds` to its first finished sample. `generating_seconds` are those from
    the first engine to the last finished sample, the same for every side. `same` counts the answers
    that are word for word those of synthia-batch in the same round. `load` is the machine's load
    average before. `reason` says why there are no numbers.
    """

    side: str
    number: int
    status: Status
    reason: str = ""
    seconds: float | None = None
    ready_seconds: float | None = None
    first_seconds: float | None = None
    generating_seconds: float | None = None
    answers: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    longest: int = 0
    shortest: int = 0
    same: int | None = None
    load: float = 0.0
    busy: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        """Output tokens by generating seconds."""
        return self.output_tokens / self.generating_seconds if self.generating_seconds else None


def take_medians(measured: Iterable[Measured], attribute: str) -> dict[str, float]:
    """Return each side's median of a number, over the rounds in which it has one."""
    values: dict[str, list[float]] = {}
    for one in measured:
        value = getattr(one, attribute)
        if one.status == "ok" and value is not None:
            values.setdefault(one.side, []).append(value)
    return {side: median(numbers) for side, numbers in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """`of` by `by`: of their medians, and the least and the most that any one round gives."""

    value: float
    least: float
    most: float


def find_ratio(measured: Sequence[Measured], attribute: str, of: str, by: str) -> Ratio | None:
    """Return the ratio of two sides in one number, None where one of them has none."""
    medians = take_medians(measured, attribute)
    if of not in medians or by not in medians:
        return None
    rounds: dict[int, dict[str, float]] = {}
    for one in measured:
        value = getattr(one, attribute)
        if one.status == "ok" and value is not None:
            rounds.setdefault(one.number, {})[one.side] = value
    each = [values[of] / values[by] for values in rounds.values() if of in values and by in values]
    value = medians[of] / medians[by]
    return Ratio(value=value, least=min(each, default=value), most=max(each, default=value))


def choose_best(trials: Sequence[Measured]) -> Measured | None:
    """Return the trial whose whole process was shortest; None where none succeeded."""
    timed = [(one.seconds, place) for place, one in enumerate(trials) if one.status == "ok" and one.seconds]
    return trials[min(timed)[1]] if timed else None


def find_busy_shares(progress: Sequence[ProgressEvent]) -> dict[int, float]:
    """Return the busy share of each worker of the last attempt, between its first and its last sample.

    As near as the events tell: from the first that counts a sample to the first that counts them all.
    """
    of_last = [one for one in progress if one.attempt == progress[-1].attempt]
    most = max((one.samples for one in of_last), default=0)
    begun = [one for one in of_last if one.samples > 0]
    if not begun:
        return {}
    start, end = begun[0], next(one for one in begun if one.samples == most)
    return measure_busy_shares(start, end)
