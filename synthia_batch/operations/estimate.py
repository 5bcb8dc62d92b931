"""What a whole job will take, judged by some of its samples. Pure: numbers in, ranges out.

Two things are uncertain, and each has bounds of its own. How much is to be made: the lengths of the
answers that are known are drawn from again and again (a bootstrap), which gives the range of the
totals that such a job has in 9 of 10 cases. How fast: between the rate that was measured and that
rate over the share of the engines' places that were filled meanwhile. The first is a lower bound
where fuller batches are not slower. The second is an upper bound where a batch that is twice as full
is at most twice as fast: for the rate f over the batch b, concave with f(0) = 0, the mean of f(b) is
at least f(full) times the mean of b / full.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.types import Failed, Finished, Outcome
from synthia_batch.scheduler.throughput import Speed

QUANTILES = {"shortest": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "longest": 100}
"""What is shown of a spread, in percent of the samples that are as short or shorter."""
DRAWS = 2000
RANGE_PERCENT = (5, 95)
FEW_SAMPLES = 10
"""With fewer, a bootstrap says nothing: drawing from three lengths cannot give a fourth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From `low` to `high`."""

    low: float
    high: float

    def scale(self, factor: float) -> "Span":
        """Return it with both ends times `factor`."""
        return Span(low=self.low * factor, high=self.high * factor)

    def shift(self, known: float) -> "Span":
        """Return it with `known` added to both ends."""
        return Span(low=self.low + known, high=self.high + known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long finished answers are, in tokens. `truncated` is the share of them that were cut off."""

    samples: int
    mean: float
    quantiles: Mapping[str, int]
    truncated: float


def sum_up_lengths(outcomes: Iterable[Outcome]) -> Lengths | None:
    """Return how long the finished ones of `outcomes` are; None where there are none."""
    finished = [outcome for outcome in outcomes if isinstance(outcome, Finished)]
    if not finished:
        return None
    lengths = sorted(outcome.completion_tokens for outcome in finished)
    return Lengths(
        samples=len(lengths),
        mean=sum(lengths) / len(lengths),
        quantiles={
            name: lengths[max(0, -(-len(lengths) * percent // 100) - 1)]
            for name, percent in QUANTILES.items()
        },
        truncated=sum(outcome.finish_reason == CUT_OFF for outcome in finished) / len(finished),
    )


def count_failures(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return how many failed with each code, the commonest first."""
    codes = Counter(outcome.code for outcome in outcomes if isinstance(outcome, Failed))
    return dict(codes.most_common())


def list_lengths(outcomes: Iterable[Outcome]) -> list[int]:
    """Return the tokens that each of `outcomes` came to; a sample that failed has none."""
    return [outcome.completion_tokens if isinstance(outcome, Finished) else 0 for outcome in outcomes]


def predict_total(lengths: Sequence[int], others: int, longest: int) -> Span:
    """Return what `others` more samples come to in tokens, drawn from where `lengths` are from.

    The range that 9 of 10 such totals are in. `longest` is what a sample can have at most: with fewer than
    10 lengths that is all that is known.
    """
    if not others:
        return Span(low=0, high=0)
    if len(lengths) < FEW_SAMPLES:
        return Span(low=0, high=others * longest)
    import numpy as np  # heavy, and only needed here

    draw = np.random.default_rng(0)
    known = np.asarray(lengths, dtype=float)
    means = np.array([draw.choice(known, len(known)).mean() for _ in range(DRAWS)])
    # The mean of what is drawn from is not known, and the others would differ from it even if it were.
    totals = others * means + draw.standard_normal(DRAWS) * known.std(ddof=1) * others**0.5
    low, high = np.percentile(totals, RANGE_PERCENT)
    return Span(low=float(max(0, low)), high=float(min(others * longest, high)))


def bound_rate(speed: Speed) -> Span:
    """Return the tokens/s of engines that are always full; see the module."""
    rate = speed.tokens_per_second
    return Span(low=rate, high=rate / speed.occupancy)


def predict_seconds(tokens: Span, speed: Speed) -> Span:
    """Return how long it takes to make `tokens`, with a start-up; no seconds where nothing is to be made."""
    if not tokens.high:
        return Span(low=0, high=0)
    rate = bound_rate(speed)
    return Span(
        low=speed.startup_seconds + tokens.low / rate.high,
        high=speed.startup_seconds + tokens.high / rate.low,
    )


def predict_bytes(sizes: Mapping[int, int], rows: int, files: int) -> int:
    """Return about how many bytes `rows` rows have in `files` files.

    `sizes` are the bytes of files by their number of rows: of two, if there are two, so that what every file
    has, however short it is, is not counted with every row.
    """
    fewer, more = min(sizes), max(sizes)
    each = (sizes[more] - sizes[fewer]) / (more - fewer) if more > fewer else sizes[more] / more
    own = max(0.0, sizes[more] - each * more)
    return round(files * own + rows * each)


def choose_speed(speeds: Sequence[Speed]) -> Speed | None:
    """Return the latest of `speeds` that was measured on at least half as many samples as any other.

    The latest is of the engines as they are set now; one of a few samples says nothing.
    """
    usable = [speed for speed in speeds if speed.tokens and speed.seconds > 0]
    most = max((speed.samples for speed in usable), default=0)
    return next((speed for speed in reversed(usable) if 2 * speed.samples >= most), None)
