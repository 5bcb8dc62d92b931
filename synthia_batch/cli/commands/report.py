"""`synthia-batch report`: write a page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show


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

    Of a pipeline, the last stage's.

    A single file without scripts or external requests. Every complete run already has one.
    """
    from synthia_batch.results.read.stage_runs import find_result

    directory = find_result(directory)
    if as_json:
        from synthia_batch.results.report.summary import read_report

        show(encode_json(read_report(directory).to_dict()))
        return
    from synthia_batch.results.report.page import write_report

    show(write_report(directory, output))
