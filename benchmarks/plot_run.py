"""Draw what a run did over time: tokens/s, and how many engines were busy.

    python -m benchmarks.plot_run outputs/questions-1a2b3c4d -o run.svg

Read from the `progress` events of the run's history. Lost workers and resumed attempts are marked. The
report of a run has the same pictures; this one keeps the time between attempts, and makes them for paper.
"""

import argparse
from pathlib import Path

from synthia_batch.results.read.history import RunHistory, read_history
from synthia_batch.results.report.plots import draw_history
from synthia_batch.storage.events import read_events
from synthia_batch.storage.layout import RunDir


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


def draw(history: RunHistory, title: str, path: Path) -> None:
    """Write the picture to `path`; the same history gives the same SVG."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "synthia-batch"}):
        figure = draw_history(history, title)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
