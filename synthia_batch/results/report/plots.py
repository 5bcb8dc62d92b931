"""The plots of a report, by matplotlib as SVG: the same numbers give the same bytes."""

import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synthia_batch.results.read.history import Interval, RunHistory, coarsen, smooth_speed
from synthia_batch.results.report.bins import Bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

MAX_INTERVALS = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """The colors of a plot."""

    ink: str
    muted: str
    grid: str
    accent: str
    second: str
    alarm: str
    warn: str


PAPER = Palette(
    ink="#111111", muted="#555555", grid="#dddddd", accent="#2563eb", second="#0d9488", alarm="#dc2626",
    warn="#a15c00",
)  # fmt: skip
PAGE = Palette(
    ink="#010101", muted="#020202", grid="#030303", accent="#040404", second="#050505", alarm="#060606",
    warn="#070707",
)  # fmt: skip
"""Placeholders for the page's own colors, which differ in light and dark mode."""
_SIZE_INCHES = (4.4, 2.3)  # the width of a phone: text is then as large as the text around it
_TALL_INCHES = (4.4, 3.6)
_REFERENCE = re.compile(r"url\(#([\w-]+)\)|href=\"#([\w-]+)\"")
_ID = re.compile(r" id=\"([\w-]+)\"")


def draw_lengths(bins: Bins, label: str) -> "Figure":
    """Return the plot of a histogram with its limit marked, at the edge if far away.

    The bar of n tokens is drawn around n, so that what has as many as the limit is left of its line.
    """
    figure, axes = _make_figure()
    edges = [edge - 0.5 for edge in bins.edges]
    axes.stairs(bins.counts, edges, fill=True, color=PAGE.accent, alpha=0.85)
    axes.set(xlabel=label, ylabel="samples")
    axes.xaxis.set_major_locator(_make_locator(bins=6, whole=True))
    limit, at = bins.limit, bins.last_within
    if limit is not None and at is not None:
        axes.stairs([bins.at_limit], edges[at : at + 2], fill=True, color=PAGE.warn)
    if limit is not None and limit <= 2 * bins.edges[-1] - bins.edges[0]:
        axes.axvline(limit + 0.5, color=PAGE.warn, linestyle="--", linewidth=1.4)
        reached = f", {bins.at_limit:,} at it" if bins.at_limit else ""
        _write_limit(axes, limit + 0.5, f"limit {limit:,}{reached}")
    elif limit is not None:
        axes.text(
            0.99, 0.97, f"limit {limit:,}, far to the right", transform=axes.transAxes,
            ha="right", va="top", color=PAGE.warn, fontsize=9,
        )  # fmt: skip
    axes.set_ylim(0, max(bins.counts) * 1.18)
    return figure


def draw_speed(history: RunHistory) -> "Figure":
    """Return two plots on one axis of time: generated tokens/s, and the mean number of busy engines.

    The loading of engines is shaded; lost workers and resumes are marked.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=_TALL_INCHES, facecolor="none")
    axes = figure.subplots(2, sharex=True, height_ratios=(3, 2), subplot_kw={"facecolor": "none"})
    figure.subplots_adjust(left=0.15, right=0.97, bottom=0.13, top=0.93, hspace=0.12)
    _draw_history(axes, history, PAGE)
    return figure


def draw_history(history: RunHistory, title: str) -> "Figure":
    """Return the same plots for paper, in fixed colors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, sharex=True)
    _draw_history(axes, history, PAPER)
    axes[0].set(title=title)
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
    axes.tick_params(colors=palette.muted, labelsize=9)
    axes.grid(visible=True, color=palette.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.muted)
    axes.yaxis.set_major_locator(_make_locator(bins=5, whole=True))
    axes.xaxis.set_major_locator(_make_locator(bins=6, whole=False))
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(palette.ink)
        axis.set_major_formatter(_abbreviate)


def _make_locator(*, bins: int, whole: bool) -> "MaxNLocator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=bins, integer=whole)


def _draw_history(both: "Sequence[Axes]", history: RunHistory, palette: Palette) -> None:
    """Draw speed above and busy engines below, on axes that share their time."""
    speed, busy = both
    unit, seconds = _choose_unit(history)
    for axes in both:
        _style(axes, palette)
        _mark(axes, history, seconds, palette)
    for intervals in smooth_speed(history):
        edges = _list_edges(intervals, seconds)
        speeds = [one.tokens_per_second for one in intervals]
        speed.stairs(speeds, edges, color=palette.accent, baseline=None, linewidth=1.6)
    for attempt in filter(None, history.attempts):
        intervals = coarsen(attempt, history.end / MAX_INTERVALS)
        engines = [one.busy_engines for one in intervals]
        busy.stairs(engines, _list_edges(intervals, seconds), color=palette.second, fill=True, alpha=0.85)
    speed.set(ylabel="tokens/s")
    busy.set(xlabel=unit, ylabel="busy engines")
    for axes in both:
        axes.set_xlim(0, history.end / seconds)
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]) * 1.05)
    if speed.get_legend_handles_labels()[0]:
        speed.legend(
            loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, fontsize=8, frameon=False,
            labelcolor=palette.ink, handlelength=1.6, borderpad=0.1, columnspacing=1.2,
        )  # fmt: skip


def _list_edges(intervals: Sequence[Interval], seconds: float) -> list[float]:
    """Return the edges of consecutive intervals, in units of `seconds`."""
    return [one.start / seconds for one in intervals] + [intervals[-1].end / seconds]


def _abbreviate(value: float, _place: float) -> str:
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def _write_limit(axes: "Axes", limit: float, text: str) -> None:
    low, high = axes.get_xlim()
    is_right = limit > (low + high) / 2
    axes.annotate(
        text, (limit, 0.97), xycoords=("data", "axes fraction"), xytext=(-4 if is_right else 4, 0),
        textcoords="offset points", ha="right" if is_right else "left", va="top",
        color=PAGE.warn, fontsize=9,
    )  # fmt: skip


def _mark(axes: "Axes", history: RunHistory, seconds: float, palette: Palette) -> None:
    """Shade the loading of engines, and mark lost workers and resumes."""
    wide = [span for span in history.loadings if span.end - span.start >= history.end / MAX_INTERVALS]
    for number, span in enumerate(wide):
        name = None if number else "loading"
        edges = (span.start / seconds, span.end / seconds)
        axes.axvspan(*edges, color=palette.muted, alpha=0.25, linewidth=0, label=name)
    for times, color, style, label in (
        (history.losses, palette.alarm, ":", "worker lost and restarted"),
        (history.resumes, palette.ink, "--", "run resumed"),
    ):
        for number, time in enumerate(times[:MAX_INTERVALS]):
            name = None if number else label
            axes.axvline(time / seconds, color=color, linestyle=style, linewidth=1.2, label=name)


def _choose_unit(history: RunHistory) -> tuple[str, float]:
    longest = history.end
    if longest > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)
