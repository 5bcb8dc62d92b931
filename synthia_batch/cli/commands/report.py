"""`synthia-batch report`: what a run came to, as a page."""

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
        bool, typer.Option("--json", help="Print the numbers behind the page as JSON, and write no page.")
    ] = False,
) -> None:
    """Write report.html: what a run came to, with pictures and samples. Also while it runs.

    One file without scripts or requests, to open, keep or send. Each complete run has one already.
    """
    if as_json:
        from synthia_batch.results.report.summary import read_report

        print(json.dumps(read_report(directory).to_dict(), ensure_ascii=False))
        return
    from synthia_batch.results.report.page import write_report

    print(write_report(directory, output))
