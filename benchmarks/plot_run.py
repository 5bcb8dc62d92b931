"""Draw what a run did over time: tokens/s, and how many engines were busy.

    python -m benchmarks.plot_run outputs/questions-1a2b3c4d -o run.svg

Read from the `progress` events of the run's history. Lost workers and resumed attempts are marked.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.throughput.measures import Progress, list_shares, read_progress
from synthia_batch.store.events import read_events
from synthia_batch.store.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What was measured between two events. Seconds count from the first event of the run."""

    start: float
    end: float
    tokens_per_second: float
    busy_engines: float


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A run over time. `attempts` holds the stretches of each attempt; marks are in seconds."""

    attempts: Sequence[Sequence[Stretch]]
    losses: Sequence[float]
    resumes: Sequence[float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="a run's directory")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture: .svg, .png or .pdf")
    options = parser.parse_args()
    history = read_history(list(read_events(RunDir(options.directory).events)))
    if not any(history.attempts):
        raise SystemExit(
            f"{options.directory}: its history has fewer than two progress events: nothing to draw"
        )
    draw(history, options.directory.name, options.output)


def read_history(events: Sequence[Mapping[str, Any]]) -> History:
    """Return what the events of a run tell about its speed."""
    if not events:
        return History(attempts=[], losses=[], resumes=[])
    begin = _stamp(events[0]["time"])
    progress = read_progress(events)
    numbers = dict.fromkeys(one.attempt for one in progress)
    return History(
        attempts=[_list_stretches([p for p in progress if p.attempt == n], begin) for n in numbers],
        losses=_list_times(events, "worker_lost", begin),
        resumes=_list_times(events, "attempt_started", begin)[1:],
    )


def draw(history: History, title: str, path: Path) -> None:
    """Write the picture to `path`; the same history gives the same SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "synthia-batch"
    from matplotlib import pyplot

    figure, (speed, busy) = pyplot.subplots(2, sharex=True, figsize=(9, 5), layout="constrained")
    for stretches in history.attempts:
        edges = [one.start for one in stretches] + [one.end for one in stretches[-1:]]
        speed.stairs([one.tokens_per_second for one in stretches], edges, color="tab:blue", baseline=None)
        busy.stairs([one.busy_engines for one in stretches], edges, color="tab:green", fill=True)
    for axes in (speed, busy):
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        for times, color, label in (
            (history.losses, "tab:red", "worker lost, starts again"),
            (history.resumes, "black", "run resumed"),
        ):
            for number, time in enumerate(times):
                axes.axvline(time, color=color, linestyle="--", label=label if number == 0 else None)
    speed.set(title=title, ylabel="tokens/s")
    busy.set(xlabel="seconds", ylabel="busy engines")
    if history.losses or history.resumes:
        speed.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _list_stretches(progress: Iterable[Progress], begin: float) -> list[Stretch]:
    return [
        Stretch(
            start=_stamp(before.time) - begin,
            end=_stamp(after.time) - begin,
            tokens_per_second=max(0, after.tokens - before.tokens) / seconds,
            busy_engines=sum(list_shares(before, after).values()),
        )
        for before, after in pairwise(progress)
        if (seconds := after.elapsed - before.elapsed) > 0
    ]


def _list_times(events: Iterable[Mapping[str, Any]], kind: str, begin: float) -> list[float]:
    return [_stamp(event["time"]) - begin for event in events if event["kind"] == kind]


def _stamp(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


if __name__ == "__main__":
    main()
