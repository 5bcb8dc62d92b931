"""`synthia-batch run`: the main job."""

import json
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from synthia_batch.cli.flags import JobFlags, takes_job_flags

if TYPE_CHECKING:
    from synthia_batch.run import RunResult

EXIT_TOO_MANY_FAILURES = 3


@takes_job_flags
def run(
    flags: JobFlags,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")] = False,
) -> None:
    """Make every sample of a job. The same command again resumes it, or says that it is done."""
    from synthia_batch.display import Display
    from synthia_batch.resolve import resolve_job
    from synthia_batch.run import run_resolved_job

    if dry_run:
        from synthia_batch.cli.plan import print_plan

        print_plan(flags, as_json)
        return
    display = Display(quiet=quiet, verbose=verbose)
    job = resolve_job(flags.read_layers(), display.say)
    result = run_resolved_job(job, display)
    print_result(result, as_json)
    raise typer.Exit(choose_exit_code(result))


def choose_exit_code(result: "RunResult") -> int:
    """Return the exit code that tells what the run came to."""
    if result.drained is not None:
        return result.drained.exit_code
    return EXIT_TOO_MANY_FAILURES if result.has_too_many_failures else 0


def print_result(result: "RunResult", as_json: bool) -> None:
    """Print what the run came to: its directory, or JSON, on stdout; words for people on stderr."""
    _print_json(result) if as_json else _print_words(result)


def _print_words(result: "RunResult") -> None:
    counts = f"{result.finished} of {result.samples} samples finished"
    if result.failed:
        counts += f", {result.failed} failed (see {result.directory / 'failed'})"
    if result.drained is not None:
        command = shlex.join(["synthia-batch", *sys.argv[1:]])
        print(f"drained on {result.drained.label}: {counts}\nresume with: {command}", file=sys.stderr)
        return
    print(f"{'already complete' if result.made == 0 else 'complete'}: {counts}", file=sys.stderr)
    if result.has_too_many_failures:
        print("more samples failed than --max-failures allows", file=sys.stderr)
    print(result.directory)
    print(f"load it with: datasets.load_dataset({str(result.directory)!r})", file=sys.stderr)


def _print_json(result: "RunResult") -> None:
    print(
        json.dumps(
            {
                "directory": str(result.directory),
                "state": "complete" if result.drained is None else "drained",
                "samples": result.samples,
                "finished": result.finished,
                "failed": result.failed,
                "made_now": result.made,
                "seconds": round(result.seconds, 1),
            }
        )
    )
