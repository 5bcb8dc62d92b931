"""`synthia-batch push`: upload a finished dataset to the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a complete run.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPO", help="NAME/DATASET on the Hub; created if missing.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Create it as private; refuse a public one.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; created if missing. [main]")] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    with_report: Annotated[bool, typer.Option("--report", help="Also push report.html.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Push data/, failed/ and the card of a complete run to the Hugging Face Hub, in one commit.

    Of a pipeline, the last stage's.

    Running it again uploads only missing files. The token comes from HF_TOKEN or `hf auth login`.
    """
    from synthia_batch.core.console import ReadingDisplay
    from synthia_batch.core.formatting import format_count
    from synthia_batch.core.telemetry import keep_private
    from synthia_batch.results.export.hub import PushTarget, push_files
    from synthia_batch.results.export.hub_dataset import list_pushed_files
    from synthia_batch.results.read.stage_runs import find_result

    keep_private()
    directory = find_result(directory)
    with ReadingDisplay(quiet=quiet) as display:
        files = list_pushed_files(directory, display.show, with_report=with_report)
    target = PushTarget(
        repository=repository,
        revision=revision,
        private=private,
        message=message or f"Push {directory.resolve().name} with synthia-batch",
    )
    done = push_files(files, target)
    if not (done.added or done.removed):
        typer.echo(f"{repository} is up to date: nothing was uploaded", err=True)
    else:
        typer.echo(f"{format_count(done.added, 'file')} uploaded, {done.unchanged} unchanged", err=True)
        typer.echo(f"load it with: datasets.load_dataset({repository!r})", err=True)
    typer.echo(done.url)
