"""`synthia-batch status`: how far a run is."""

import json
from pathlib import Path
from typing import Annotated

import typer


def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show how far a run is. Only reads, also while the run goes on."""
    from synthia_batch.report.statistics import read_status

    found = read_status(directory)
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    for key, value in found.to_dict().items():
        if value is not None:
            print(f"{key.replace('_', ' ')}: {value}")
