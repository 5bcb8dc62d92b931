"""`synthia-batch run`: run or resume a job."""

import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from synthia_batch.cli.flags import JobFlags
from synthia_batch.cli.picture import show_picture
from synthia_batch.cli.streams import OutputClosed
from synthia_batch.core.errors import NothingSelected, StorageFailed, UsageError
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show
from synthia_batch.job.loading.command_line import describe_command

if TYPE_CHECKING:
    from synthia_batch.job.loading.layer import Layer
    from synthia_batch.job.loading.pipeline_file import Pipeline
    from synthia_batch.job.resolved import ResolvedJob
    from synthia_batch.runner.monitoring.result import RunResult
    from synthia_batch.runner.pipeline import PipelineResult, StageResult

_log = logging.getLogger(__name__)

ForceFlag = Annotated[
    bool, typer.Option("--force", help="Start the engines though this machine is too small for them.")
]


def run(
    flags: JobFlags,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and exit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Of a pipeline: end after this stage.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Of a pipeline: this stage, behind complete ones."),
    ] = None,
    force: ForceFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log the job's identity and the events of each worker.")
    ] = False,
) -> None:
    """Generate every sample of a job. The same command resumes it, or reports that it is complete."""
    from synthia_batch.core.console import Display
    from synthia_batch.core.log import set_verbosity
    from synthia_batch.runner.resolve import resolve_job
    from synthia_batch.runner.run import run_resolved_job

    if dry_run:
        from synthia_batch.cli.commands.plan import print_plan

        if until is not None or only is not None:
            raise UsageError("--dry-run shows the whole pipeline; leave --until and --only out")
        print_plan(flags, as_json)
        return
    set_verbosity(quiet=quiet, verbose=verbose)
    layers = flags.read_layers()
    pipeline = flags.find_pipeline(layers)
    if pipeline is not None:
        wanted = {"until": until, "only": only}
        _run_stages(pipeline, layers[:-1], wanted, quiet=quiet, as_json=as_json, force=force)
    for flag, stage in (("--until", until), ("--only", only)):
        if stage is not None:
            raise UsageError(f"{flag} {stage}: this is a single job; a pipeline has stages")
    display = Display(quiet=quiet)
    job = resolve_job(layers)
    with _log_details(job) if verbose else nullcontext():
        result = run_resolved_job(job, display, force=force)
    print_result(result, as_json, quiet=quiet)
    raise typer.Exit(result.exit_code)


def _run_stages(
    pipeline: "Pipeline",
    flags: "Sequence[Layer]",
    wanted: Mapping[str, str | None],
    *,
    quiet: bool,
    as_json: bool,
    force: bool,
) -> NoReturn:
    """Run the pipeline, print what became of each stage, and exit.

    `wanted` has the stage of `until` or `only`.
    """
    from synthia_batch.core.console import Display
    from synthia_batch.runner.monitoring.result import RunResult
    from synthia_batch.runner.pipeline import PipelineResult, run_pipeline

    try:
        done = run_pipeline(pipeline, flags, lambda: Display(quiet=quiet), force=force, **wanted)
    except NothingSelected as exc:
        if as_json and isinstance(exc.made, PipelineResult):
            show(encode_json(_describe_pipeline(exc.made, _describe_nothing(exc))))
        raise
    for stage in done.stages:
        counts = f"{stage.kept} of {stage.result.samples} samples kept"
        _log.info(f"{stage.name}: {counts}, {stage.result.directory}")
        if isinstance(stage.result, RunResult) and not quiet:
            show_picture(stage.result)
    last = done.stages[-1]
    if done.is_done and not done.is_complete and any(wanted.values()):
        flag = "--until" if wanted["only"] is None else "--only"
        _log.info(f"ended after {last.name}, as {flag} says; without it, the same command goes on")
    elif not done.is_done:
        if isinstance(last.result, RunResult) and last.exit_code:
            _print_messages(last.result)
        why = f", on {done.stopped.label}" if done.stopped else ""
        is_made = isinstance(last.result, RunResult) and last.result.is_complete
        first = f"once {last.name} is retried, " if is_made and last.exit_code else ""
        _log.info(f"the pipeline ended in {last.name}{why}; {first}resume with: {describe_command()}")
    if as_json:
        show(encode_json(_describe_pipeline(done)))
    elif done.is_done:
        show(last.result.directory)
    raise typer.Exit(done.exit_code)


def _describe_pipeline(done: "PipelineResult", *more: dict[str, Any]) -> dict[str, Any]:
    """Return what became of the stages, and of `more` behind them, as JSON-serializable values."""
    stages = [*map(_describe_stage, done.stages), *more]
    state = "complete" if done.is_complete else "incomplete"
    return {"directory": str(done.directory), "state": state, "stages": stages}


def _describe_stage(stage: "StageResult") -> dict[str, Any]:
    from synthia_batch.runner.monitoring.result import RunResult

    result = stage.result
    state, not_selected = "complete", 0
    if isinstance(result, RunResult):
        state = "too_many_failures" if result.has_too_many_failures else _name_state(result)
    else:
        not_selected = result.not_selected
    counts = {
        "samples": result.samples,
        "kept": stage.kept,
        "not_selected": not_selected,
        "failed": result.samples - stage.kept - not_selected,
    }
    return {"name": stage.name, "directory": str(result.directory), "state": state, **counts}


def _describe_nothing(exc: NothingSelected) -> dict[str, Any]:
    """Return what became of a stage that keeps none of the samples before it; it has no directory."""
    from synthia_batch.results.select.verdicts import count_not_selected

    not_selected = count_not_selected(exc.dropped)
    counts = {"samples": exc.samples, "kept": 0, "not_selected": not_selected}
    counts["failed"] = exc.samples - not_selected
    return {"name": exc.stage, "directory": None, "state": "nothing_selected", **counts}


def print_result(result: "RunResult", as_json: bool, *, quiet: bool) -> None:
    """Print the result: the run's directory or JSON to stdout, messages to stderr.

    Unless `quiet`, a terminal gets a picture of the run before them. A stdout that cannot be written does
    not change the result of the run.
    """
    if not quiet:
        show_picture(result)
    _print_messages(result)
    try:
        if as_json:
            _print_json(result)
        elif result.drained is None:
            show(result.place)
        sys.stdout.flush()
    except (OutputClosed, StorageFailed) as exc:
        _log.info(f"{exc}; the run is not affected")


def _print_messages(result: "RunResult") -> None:
    counts = f"{result.finished} of {result.samples} samples finished"
    if result.failed:
        counts += f", {result.failed} failed"
    if result.drained is None and not result.is_complete:
        lines = [f"not complete: {counts}; `synthia-batch run` with the job's flags generates the others"]
    elif result.drained is None:
        lines = [f"{'already complete' if result.made == 0 else 'complete'}: {counts}"]
        if not result.finished:
            lines.append("every sample failed: there is no dataset to load")
        else:
            lines.append(f"load it with: {_format_loading(result)}")
    elif result.drained.name == "FAILURES":
        lines = [f"stopped, finished samples are kept: {counts}"]
    else:
        lines = [f"drained on {result.drained.label}: {counts}", f"resume with: {describe_command()}"]
    if result.has_too_many_failures:
        lines += _explain_failures(result)
    elif result.failed:
        lines.append(f"list them with: synthia-batch failed {shlex.quote(str(result.directory))}")
    report = result.directory / "report.html"
    if result.drained is None and report.exists():
        lines.append(f"report: {report}")
    show("\n".join(lines), file=sys.stderr)


def _format_loading(result: "RunResult") -> str:
    if result.remote is None:
        where = str(result.directory)
        if find_spec("datasets") is not None:
            return f"datasets.load_dataset({where!r})"
        if find_spec("pandas") is not None:
            return f"pandas.read_parquet({where + '/data'!r})"
        return f"pyarrow.parquet.read_table({where + '/data'!r})"
    # Unlike other readers, pyarrow needs no add-on for stores.
    return f"pyarrow.dataset.dataset({result.remote + '/data'!r}).to_table()"


def _explain_failures(result: "RunResult") -> list[str]:
    """Return the most common reasons with examples, and what to do next."""
    from synthia_batch.core.formatting import shorten
    from synthia_batch.results.read.failed_rows import read_failed_rows
    from synthia_batch.results.read.failures import COMMONEST, advise_on_failures, find_reasons

    lines = []
    if result.max_failures is not None and result.failed > result.max_failures:
        lines.append(f"{result.failed} samples failed, and --max-failures allows {result.max_failures}")
    lines.append("most common reasons:")
    reasons = find_reasons(result.directory)
    for reason in reasons[:COMMONEST]:
        example = f"{shorten(reason.example.place)}: {shorten(reason.example.message)}"
        lines.append(f"  {reason.count:>7,} {reason.code}, such as {example}")
    codes = [reason.code for reason in reasons]
    lines += advise_on_failures(str(result.directory), codes, read_failed_rows(result.directory))
    if result.drained is not None:
        lines.append("or continue: the same command with a higher --max-failures")
    return lines


def _print_json(result: "RunResult") -> None:
    show(
        encode_json(
            {
                "directory": str(result.directory),
                **({"output": result.remote} if result.remote else {}),
                "state": _name_state(result),
                "samples": result.samples,
                "finished": result.finished,
                "failed": result.failed,
                "made_now": result.made,
                "seconds": round(result.seconds, 1),
            }
        )
    )


def _name_state(result: "RunResult") -> str:
    if result.drained is None:
        return "complete" if result.is_complete else "incomplete"
    return "too_many_failures" if result.drained.name == "FAILURES" else "drained"


@contextmanager
def _log_details(job: "ResolvedJob") -> Iterator[None]:
    """Log the job's identity before the block and its workers' events after it."""
    from synthia_batch.job.dotted import flatten
    from synthia_batch.storage.events import read_events
    from synthia_batch.storage.layout import RunDir

    _log.debug(f"fingerprint {job.fingerprint}, directory {job.output}")
    for key, value in flatten(job.identity).items():
        _log.debug(f"  {key}: {value}")
    history = RunDir(job.output).events
    seen = sum(1 for _ in read_events(history))
    try:
        yield
    finally:
        for number, event in enumerate(read_events(history)):
            if number >= seen and event["kind"].startswith("worker_"):
                _log.debug(_describe_event(event))


def _describe_event(event: dict[str, Any]) -> str:
    # The log's tail was already shown when the worker died.
    facts = {key: value for key, value in event.items() if key not in ("time", "kind", "log_tail")}
    text = ", ".join(f"{key} {value}" for key, value in facts.items())
    return f"{event['time']} {event['kind'].replace('_', ' ')}: {text}"
