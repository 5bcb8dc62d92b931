"""Estimate tokens, time and bytes of a whole job from some of its samples. Pure functions of numbers.

Two things are uncertain. The number of tokens: resampling the known answer lengths (a bootstrap) gives
the range that contains 9 of 10 totals of such a job. The speed: it lies between the measured rate and
that rate divided by the average share of filled batch slots. The former is a lower bound if fuller
batches are not slower. The latter is an upper bound if a batch twice as full is at most twice as fast:
if the rate f over the batch size b is concave with f(0) = 0, the mean of f(b) is at least f(full) times
the mean of b / full.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.core.types import Failed, Finished, Outcome
from synthia_batch.scheduler.throughput import Speed

QUANTILES = {"shortest": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "longest": 100}
"""The quantiles to show, in percent of samples."""
DRAWS = 2000
RANGE_PERCENT = (5, 95)
FEW_SAMPLES = 10
"""With fewer, a bootstrap is meaningless: resampling three lengths cannot give a fourth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range from `low` to `high`."""

    low: float
    high: float

    def scale(self, factor: float) -> "Span":
        """Return it with both ends multiplied by `factor`."""
        return Span(low=self.low * factor, high=self.high * factor)

    def shift(self, known: float) -> "Span":
        """Return it with `known` added to both ends."""
        return Span(low=self.low + known, high=self.high + known)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSummary:
    """LengthSummary of finished answers in tokens. `truncated` is the share that was cut off."""

    samples: int
    mean: float
    quantiles: Mapping[str, int]
    truncated: float


def summarize_lengths(outcomes: Iterable[Outcome]) -> LengthSummary | None:
    """Return the lengths of the finished samples in `outcomes`; None if there are none."""
    finished = [outcome for outcome in outcomes if isinstance(outcome, Finished)]
    if not finished:
        return None
    lengths = sorted(outcome.completion_tokens for outcome in finished)
    return LengthSummary(
        samples=len(lengths),
        mean=sum(lengths) / len(lengths),
        quantiles={
            name: lengths[max(0, -(-len(lengths) * percent // 100) - 1)]
            for name, percent in QUANTILES.items()
        },
        truncated=sum(outcome.finish_reason == CUT_OFF for outcome in finished) / len(finished),
    )


def count_failures(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return the number of failures by code, most common first."""
    codes = Counter(outcome.code for outcome in outcomes if isinstance(outcome, Failed))
    return dict(codes.most_common())


def list_lengths(outcomes: Iterable[Outcome]) -> list[int]:
    """Return the completion tokens of each outcome, 0 for a failed sample."""
    return [outcome.completion_tokens if isinstance(outcome, Finished) else 0 for outcome in outcomes]


def predict_total(lengths: Sequence[int], others: int, longest: int) -> Span:
    """Return the tokens of `others` more samples from the same distribution as `lengths`.

    The range contains 9 of 10 such totals. `longest` is the limit per sample: with fewer than 10 lengths
    nothing else is known.
    """
    if not others:
        return Span(low=0, high=0)
    if len(lengths) < FEW_SAMPLES:
        return Span(low=0, high=others * longest)
    import numpy as np  # heavy, and only needed here

    draw = np.random.default_rng(0)
    known = np.asarray(lengths, dtype=float)
    means = np.array([draw.choice(known, len(known)).mean() for _ in range(DRAWS)])
    # Two uncertainties: the mean of the distribution, and the samples' deviation from it.
    totals = others * means + draw.standard_normal(DRAWS) * known.std(ddof=1) * others**0.5
    low, high = np.percentile(totals, RANGE_PERCENT)
    return Span(low=float(max(0, low)), high=float(min(others * longest, high)))


def bound_rate(speed: Speed) -> Span:
    """Return the range of tokens/s of engines with full batches; see the module."""
    rate = speed.tokens_per_second
    return Span(low=rate, high=rate / speed.occupancy)


def predict_seconds(tokens: Span, speed: Speed) -> Span:
    """Return the seconds to generate `tokens`, including start-up; 0 for no tokens."""
    if not tokens.high:
        return Span(low=0, high=0)
    rate = bound_rate(speed)
    return Span(
        low=speed.startup_seconds + tokens.low / rate.high,
        high=speed.startup_seconds + tokens.high / rate.low,
    )


def predict_bytes(sizes: Mapping[int, int], rows: int, files: int) -> int:
    """Return the approximate size of `rows` rows in `files` files.

    `sizes` maps numbers of rows to file sizes. With two entries, the fixed size of each file is not
    counted per row.
    """
    fewer, more = min(sizes), max(sizes)
    each = (sizes[more] - sizes[fewer]) / (more - fewer) if more > fewer else sizes[more] / more
    own = max(0.0, sizes[more] - each * more)
    return round(files * own + rows * each)


def choose_speed(speeds: Sequence[Speed]) -> Speed | None:
    """Return the latest of `speeds` that was measured on at least half as many samples as any other.

    The latest one reflects the current settings; one measured on a few samples is unreliable.
    """
    usable = [speed for speed in speeds if speed.tokens and speed.seconds > 0]
    most = max((speed.samples for speed in usable), default=0)
    return next((speed for speed in reversed(usable) if 2 * speed.samples >= most), None)
