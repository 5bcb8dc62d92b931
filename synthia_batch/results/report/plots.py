"""The plots of a report, by matplotlib as SVG: the same numbers give the same bytes."""

import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synthia_batch.results.read.history import Interval, RunHistory, coarsen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_INTERVALS = 240
SPEED_INTERVALS = 60
SPEED_SECONDS = 10.0
"""Tokens are counted when their sample ends: over shorter intervals, speed is mostly noise."""
MAX_BINS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """The colors of a plot."""

    ink: str
    muted: str
    grid: str
    accent: str
    second: str
    alarm: str


PAPER = Palette(
    ink="#111111", muted="#555555", grid="#dddddd", accent="#2563eb", second="#0d9488", alarm="#dc2626"
)
PAGE = Palette(
    ink="#010101", muted="#020202", grid="#030303", accent="#040404", second="#050505", alarm="#060606"
)
"""Placeholders for the page's own colors, which differ in light and dark mode."""
_SIZE_INCHES = (4.4, 2.3)  # the width of a phone: text is then as large as the text around it
_REFERENCE = re.compile(r"url\(#([\w-]+)\)|href=\"#([\w-]+)\"")
_ID = re.compile(r" id=\"([\w-]+)\"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """A histogram: `counts[n]` samples have at least `edges[n]` and less than `edges[n + 1]` tokens."""

    edges: Sequence[int]
    counts: Sequence[int]


def make_bins(counts: NDArray[np.int64]) -> Bins:
    """Return the histogram of `counts[n]` samples with n tokens, in bins of a round width."""
    stop = len(np.trim_zeros(counts, "b"))
    (used,) = np.nonzero(counts)
    start = int(used[0]) if len(used) else 0
    width = next(
        step
        for power in range(12)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if (stop - start) <= step * (MAX_BINS - 1)
    )
    edges = list(range(start // width * width, max(stop, 1) + width, width))
    padded = np.zeros(edges[-1], dtype=np.int64)
    padded[: min(stop, edges[-1])] = counts[:stop]
    sums = [int(padded[low:high].sum()) for low, high in pairwise(edges)]
    while len(sums) > 1 and not sums[-1]:
        sums.pop()
        edges.pop()
    return Bins(edges=edges, counts=sums)


def draw_lengths(bins: Bins, limit: int | None, label: str) -> "Figure":
    """Return the plot of a histogram with the limit marked, at the edge if far away."""
    figure, axes = _make_figure()
    axes.stairs(bins.counts, bins.edges, fill=True, color=PAGE.accent, alpha=0.85)
    axes.set(xlabel=label, ylabel="samples")
    span = bins.edges[-1] - bins.edges[0]
    if limit is not None and limit <= bins.edges[-1] + span:
        axes.axvline(limit, color=PAGE.alarm, linestyle="--", linewidth=1.4)
        _write_limit(axes, limit, f"limit {limit:,}")
    elif limit is not None:
        axes.text(
            0.99, 0.97, f"limit {limit:,}, far to the right", transform=axes.transAxes,
            ha="right", va="top", color=PAGE.alarm, fontsize=9,
        )  # fmt: skip
    axes.set_ylim(0, max(bins.counts) * 1.18)
    return figure


def draw_speed(history: RunHistory) -> "Figure":
    """Return the plot of generated tokens/s over time, with lost workers and resumes marked."""
    figure, axes = _make_figure()
    _plot_speed(axes, history, PAGE)
    return figure


def draw_engines(history: RunHistory) -> "Figure":
    """Return the plot of the mean number of busy engines in each interval."""
    figure, axes = _make_figure()
    _plot_engines(axes, history, PAGE)
    return figure


def draw_history(history: RunHistory, title: str) -> "Figure":
    """Return both plots stacked, in fixed colors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    speed, busy = figure.subplots(2, sharex=True)
    for axes in (speed, busy):
        _style(axes, PAPER)
    _plot_speed(speed, history, PAPER)
    _plot_engines(busy, history, PAPER)
    speed.set(title=title, xlabel="")
    return figure


@contextmanager
def default_settings() -> Iterator[None]:
    """Use matplotlib's defaults within the block, so that user settings do not change a page."""
    # Hides the message about building the font cache on first use.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "synthia-batch", "svg.fonttype": "none"})
        yield


def render_svg(figure: "Figure") -> str:
    """Return the plot as an SVG element, in the page's colors and font."""
    sink = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # Creator names the version
    figure.savefig(sink, format="svg", metadata=no_metadata)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    used = {name for pair in _REFERENCE.findall(text) for name in pair if name}
    text = _ID.sub(lambda found: found[0] if found[1] in used else "", text)
    # The page sets the size.
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for name in PAGE.__slots__:
        text = text.replace(getattr(PAGE, name), f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)


def _make_figure() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, facecolor="none")
    axes = figure.add_axes((0.15, 0.23, 0.82, 0.67), facecolor="none")
    _style(axes, PAGE)
    return figure, axes


def _style(axes: "Axes", palette: Palette) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.tick_params(colors=palette.muted, labelsize=9)
    axes.grid(visible=True, color=palette.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.muted)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(palette.ink)
        axis.set_major_formatter(_abbreviate)


def _plot_speed(axes: "Axes", history: RunHistory, palette: Palette) -> None:
    unit, seconds = _choose_unit(history)
    width = max(SPEED_SECONDS, _find_end(history) / SPEED_INTERVALS)
    for edges, intervals in _list_steps(history, seconds, width):
        speeds = [one.tokens_per_second for one in intervals]
        axes.stairs(speeds, edges, color=palette.accent, baseline=None, linewidth=1.6)
    axes.set(xlabel=unit, ylabel="tokens/s")
    _mark(axes, history, seconds, palette)
    if history.losses or history.resumes:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, fontsize=8, frameon=False,
            labelcolor=palette.ink, handlelength=1.6, borderpad=0.1,
        )  # fmt: skip
    _leave_room(axes)


def _plot_engines(axes: "Axes", history: RunHistory, palette: Palette) -> None:
    unit, seconds = _choose_unit(history)
    for edges, intervals in _list_steps(history, seconds, _find_end(history) / MAX_INTERVALS):
        busy = [one.busy_engines for one in intervals]
        axes.stairs(busy, edges, color=palette.second, fill=True, alpha=0.85)
    axes.set(xlabel=unit, ylabel="busy engines")
    _mark(axes, history, seconds, palette)
    _leave_room(axes)


def _leave_room(axes: "Axes") -> None:
    axes.set_xlim(left=0)
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]) * 1.05)


def _list_steps(
    history: RunHistory, seconds: float, width: float
) -> Iterator[tuple[list[float], list[Interval]]]:
    """Yield the edges and intervals of each attempt, edges in units of `seconds`.

    An interval lasts `width` seconds or more.
    """
    for attempt in history.attempts:
        intervals = coarsen(attempt, width)
        if intervals:
            yield [one.start / seconds for one in intervals] + [intervals[-1].end / seconds], intervals


def _abbreviate(value: float, _place: float) -> str:
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _write_limit(axes: "Axes", limit: int, text: str) -> None:
    low, high = axes.get_xlim()
    is_right = limit > (low + high) / 2
    axes.annotate(
        text, (limit, 0.97), xycoords=("data", "axes fraction"), xytext=(-4 if is_right else 4, 0),
        textcoords="offset points", ha="right" if is_right else "left", va="top",
        color=PAGE.alarm, fontsize=9,
    )  # fmt: skip


def _mark(axes: "Axes", history: RunHistory, seconds: float, palette: Palette) -> None:
    for times, color, style, label in (
        (history.losses, palette.alarm, ":", "worker lost and restarted"),
        (history.resumes, palette.ink, "--", "run resumed"),
    ):
        for number, time in enumerate(times[:MAX_INTERVALS]):
            name = None if number else label
            axes.axvline(time / seconds, color=color, linestyle=style, linewidth=1.2, label=name)


def _find_end(history: RunHistory) -> float:
    return max((one.end for attempt in history.attempts for one in attempt), default=0.0)


def _choose_unit(history: RunHistory) -> tuple[str, float]:
    longest = _find_end(history)
    if longest > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)
