"""`synthia-batch report`: write a page about a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show


def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a run or a pipeline.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it. [DIR/report.html]"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the page's numbers as JSON instead.")
    ] = False,
) -> None:
    """Write report.html: a run's results with plots and samples. Works while the run is in progress.

    Of a pipeline: what became of the samples in each stage, the scores, best and worst answers.

    A single file without scripts or external requests. Every complete run already has one.
    """
    if as_json:
        show(encode_json(_read_numbers(directory)))
        return
    from synthia_batch.results.report.page import write_report

    show(write_report(directory, output))


def _read_numbers(directory: Path) -> dict[str, Any]:
    from synthia_batch.results.report.funnel import read_pipeline_report
    from synthia_batch.results.report.summary import read_report
    from synthia_batch.storage.layout import RunDir

    is_pipeline = RunDir(directory).pipeline.exists()
    return read_pipeline_report(directory).to_dict() if is_pipeline else read_report(directory).to_dict()
