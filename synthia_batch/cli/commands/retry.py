"""`synthia-batch retry`: regenerate failed samples."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from synthia_batch.cli.commands.run import ForceFlag
from synthia_batch.cli.run_location import RunLocation, is_url
from synthia_batch.core.terminal import show
from synthia_batch.storage.layout import RunDir

_log = logging.getLogger(__name__)


def retry(
    directory: RunLocation,
    code: Annotated[
        str | None, typer.Option(help="Only samples that failed with this code. [all failed samples]")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A job key outside the job's identity. Repeatable."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="The run is yours: use addresses, keys and code it names.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    force: ForceFlag = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Regenerate failed samples, optionally with other settings, and republish their files.

    For a run in a store this uses its state directory, which is recreated here if it is lost. Of a pipeline,
    stage by stage up to the first of which a sample is not failed any more: those behind it are for the next
    run.
    """
    from synthia_batch.cli.commands.run import print_result
    from synthia_batch.core.console import Display
    from synthia_batch.core.log import set_verbosity
    from synthia_batch.job.dotted import merge_values
    from synthia_batch.job.loading.merge import Layer, parse_assignment, read_environment
    from synthia_batch.results.read.stage_runs import read_stage_runs
    from synthia_batch.runner.directory.reopen import FailureChoice
    from synthia_batch.runner.retry import RetryResult, retry_failed

    values: dict[str, object] = {}
    for assignment in settings or []:
        values = merge_values(values, parse_assignment(assignment))
    set_verbosity(quiet=quiet)
    display = Display(quiet=quiet)
    layers = [Layer(origin="flag", values=values), read_environment(os.environ)]
    places = _list_places(directory)
    result: RetryResult | None = None
    for place in places:
        retried = retry_failed(place, FailureChoice(code=code), layers, display, force=force, trusts=trust)
        if retried.run is not None:
            result = retried
            if retried.mended or retried.run.exit_code or not retried.run.is_complete:
                break
    if result is None or result.run is None:
        which = f"with the code {code}" if code else "failed"
        _log.info(f"{directory}: there are no samples {which}; nothing was changed")
        show(_to_json(directory) if as_json else directory)
        return
    _log.info(f"retried {result.chosen} failed samples")
    print_result(result.run, as_json, quiet=quiet)
    stages = None if is_url(directory) else read_stage_runs(Path(directory))
    if result.mended and stages and stages[-1].run != result.directory:
        _log.info("run the pipeline again: what is behind this stage is not made of its new samples yet")
    raise typer.Exit(result.run.exit_code)


def _list_places(directory: str) -> list[str]:
    """Return what has samples to retry: the run, or those stages of a pipeline that generate."""
    from synthia_batch.results.read.stage_runs import read_stage_runs
    from synthia_batch.storage.plan_file import require_plan

    stages = None if is_url(directory) else read_stage_runs(Path(directory))
    if stages is None:
        return [directory]
    runs = [stage.run for stage in stages if stage.run is not None and stage.is_current]
    if len(runs) < len(stages):
        _log.info("stages that have not begun, or before which others have changed, are for the next run")
    return [str(run) for run in runs if "select" not in require_plan(RunDir(run))["identity"]]


def _to_json(directory: str) -> str:
    from synthia_batch.core.formatting import encode_json

    return encode_json({"directory": directory, "chosen": 0, "made_now": 0})
