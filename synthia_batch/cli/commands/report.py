"""`synthia-batch report`: write a page about a run."""

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it. [DIR/report.html]"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the page's numbers as JSON instead.")
    ] = False,
) -> None:
    """Write report.html: a run's results with plots and samples. Works while the run is in progress.

    A single file without scripts or external requests. Every complete run already has one.
    """
    if as_json:
        from synthia_batch.results.report.summary import read_report

        print(json.dumps(read_report(directory).to_dict(), ensure_ascii=False))
        return
    from synthia_batch.results.report.page import write_report

    print(write_report(directory, output))
