"""`synthia-batch preview`: the exact prompts of some rows, optionally with answers."""

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from synthia_batch.cli.flags import JobFlags
from synthia_batch.cli.rows import preview_to_dict, print_rows
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show
from synthia_batch.job.loading.command_line import describe_command

if TYPE_CHECKING:
    from synthia_batch.operations.preview import JobPreview


def preview(
    flags: JobFlags,
    count: Annotated[
        int | None,
        typer.Option(
            "-n", "--rows", min=1, metavar="N", help="Rows to show, from the first. [3; 1 of a pipeline]"
        ),
    ] = None,
    scattered: Annotated[
        bool, typer.Option("--random", help="Show rows from across the input, always the same ones.")
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers", help="Generate answers. They count as done when the run starts; a pipeline's do not."
        ),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Show long texts in full.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Show the exact prompts of a few rows for each system message, and their answers with --answers.

    Takes the flags of `run`, except that -n is the number of rows. Writes nothing without --answers.

    Of a pipeline, shows the prompts of the first stage and what each later one asks or keeps; with --answers
    the way of the first rows through all stages, which its run makes anew.
    """
    from synthia_batch.core.console import Display
    from synthia_batch.core.log import set_verbosity
    from synthia_batch.operations.preview import preview_answers, preview_prompts
    from synthia_batch.runner.resolve import resolve_job

    set_verbosity(quiet=quiet)
    display = Display(quiet=quiet)
    layers = flags.read_layers()
    pipeline = flags.find_pipeline(layers)
    if pipeline is not None:
        from synthia_batch.cli.commands.stages import PreviewChoice, preview_stages

        choice = PreviewChoice(scattered=scattered, answers=answers, full=full, as_json=as_json, quiet=quiet)
        preview_stages(pipeline, layers[:-1], count or 1, choice)
        return
    job, count = resolve_job(layers), count or 3
    if answers:
        found = preview_answers(job, count, display, scattered=scattered)
    else:
        found = preview_prompts(job, count, scattered=scattered)
    if as_json:
        show(encode_json(preview_to_dict(job, found), indent=2))
    else:
        print_rows(job, found, full)
    if answers:
        _print_messages(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _print_messages(found: "JobPreview") -> None:
    if found.drained is not None:
        show(f"drained on {found.drained.label}; resume with: {describe_command()}", file=sys.stderr)
    elif found.is_complete:
        show(f"the run is complete: {found.directory}", file=sys.stderr)
    else:
        done = f"{found.ended} of {found.total} samples are done"
        show(f"{done} in {found.directory}; `run` with the same flags generates the others", file=sys.stderr)
    if found.drained is None and found.has_only_failures:
        place = shlex.quote(str(found.directory))
        show(f"each of these samples failed; what helps: synthia-batch failed {place}", file=sys.stderr)
