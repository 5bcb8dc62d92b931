"""The picture of a run that ends in a terminal: how long its answers are, and its speed over time.

Its numbers are those of report.html: the same bins, and the same steps of time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from synthia_batch.core.formatting import format_seconds
from synthia_batch.results.read.history import RunHistory, smooth_speed
from synthia_batch.results.report.bins import MAX_BINS
from synthia_batch.results.report.summary import RunNumbers
from synthia_batch.results.report.verdict import format_share

MIN_COLUMNS = 80
BAR_LINES = 5
"""With a title, an axis and a line of numbers, a picture has eight lines."""
_LEFT_COLUMNS = MAX_BINS + 6
_GAP_COLUMNS = 3
_MOST_WIDE = 5
_MOST_COLUMNS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """The characters of a picture. `levels` lead from an empty to a full cell."""

    levels: str
    limit: str
    loading: str


UNICODE = Symbols(levels=" ▁▂▃▄▅▆▇█", limit="│", loading="░")
ASCII = Symbols(levels=" .:#", limit="|", loading="~")


def draw_picture(numbers: RunNumbers, columns: int, symbols: Symbols) -> list[str]:
    """Return the lines of the picture for a terminal of `columns`, of which the last is left free.

    There are none below 80 columns, or if no sample is finished. A run that was too short for two events of
    progress has no speed over time.
    """
    if columns < MIN_COLUMNS or not numbers.counts.total.finished:
        return []
    left = _draw_lengths(numbers, symbols)
    if not smooth_speed(numbers.history):
        return [line.rstrip() for line in left]
    room = min(_MOST_COLUMNS, columns - 1 - _LEFT_COLUMNS - _GAP_COLUMNS)
    right = _draw_speed(numbers, room, symbols)
    width = _LEFT_COLUMNS + _GAP_COLUMNS
    return [f"{one:<{width}}{other}".rstrip() for one, other in zip(left, right, strict=True)]


def _draw_lengths(numbers: RunNumbers, symbols: Symbols) -> list[str]:
    """Return the histogram of answers, and behind the bin that ends at the limit a line."""
    bins, whole = numbers.answer_bins, numbers.counts.total
    wide = min(_MOST_WIDE, MAX_BINS // len(bins.counts))
    heights = [count / max(bins.counts) for count in bins.counts for _ in range(wide)]
    bars = _draw_bars(heights, symbols)
    if bins.last_within is not None:
        at = (bins.last_within + 1) * wide
        bars = [f"{line[:at]}{symbols.limit}{line[at:]}" for line in bars]
    title = f"{whole.finished:,} {'conversations' if numbers.head.plays_turns else 'answers'}"
    if bins.at_limit:
        title += f", {format_share(bins.at_limit, whole.finished)} at the limit"
    axis = _spread(f"{bins.edges[0]:,}", f"{bins.edges[-1] - 1:,} tokens", wide * len(bins.counts))
    lengths = whole.answers.to_dict()
    told = f"median {lengths['median']:,}, longest {lengths['longest']:,}"
    if bins.limit is not None:
        told += f", limit {bins.limit:,}"
    return [title, *bars, axis, told]


def _draw_speed(numbers: RunNumbers, columns: int, symbols: Symbols) -> list[str]:
    """Return generated tokens/s over time; where only engines load, that is shown at the bottom."""
    history = numbers.history
    speeds = [*_sample_speeds(history, columns)]
    highest = max(one.tokens_per_second for attempt in smooth_speed(history) for one in attempt)
    bars = _draw_bars([(speed or 0.0) / (highest or 1.0) for speed in speeds], symbols)
    bottom = "".join(
        symbols.loading if speed is None else bar for speed, bar in zip(speeds, bars[-1], strict=True)
    )
    title = "tokens/s"
    if None in speeds:
        loading = sum(one.end - one.start for one in history.loadings)
        title += f", {symbols.loading} loading {format_seconds(loading)}"
    mean = "" if numbers.tokens_per_second is None else f"mean {numbers.tokens_per_second:,.0f}, "
    axis = _spread("0", format_seconds(history.end), columns)
    return [title, *bars[:-1], bottom, axis, f"{mean}highest {highest:,.0f}"]


def _sample_speeds(history: RunHistory, columns: int) -> Iterator[float | None]:
    """Yield the speed in the middle of each column's time, None where the engines are loading."""
    intervals = [one for attempt in smooth_speed(history) for one in attempt]
    for column in range(columns):
        time = (column + 0.5) * history.end / columns
        speed = next((one.tokens_per_second for one in intervals if one.start <= time < one.end), 0.0)
        is_loading = any(one.start <= time < one.end for one in history.loadings)
        yield None if is_loading and not speed else speed


def _draw_bars(heights: Sequence[float], symbols: Symbols) -> list[str]:
    """Return the lines of bars with these heights, from 0 to 1. Above 0, a bar has at least one level."""
    most = len(symbols.levels) - 1
    levels = [max(height > 0, round(height * BAR_LINES * most)) for height in heights]
    return [
        "".join(symbols.levels[min(most, max(0, level - below * most))] for level in levels)
        for below in reversed(range(BAR_LINES))
    ]


def _spread(first: str, last: str, columns: int) -> str:
    """Return both ends of an axis, as far apart as it is long if there is room."""
    room = columns - len(first)
    return f"{first}{last:>{room}}" if room > len(last) else f"{first} to {last}"
