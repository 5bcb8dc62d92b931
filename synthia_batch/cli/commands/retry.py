"""`synthia-batch retry`: regenerate failed samples."""

import logging
import os
from typing import Annotated

import typer

from synthia_batch.cli.run_location import RunLocation
from synthia_batch.core.terminal import show

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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Regenerate failed samples, optionally with other settings, and republish their files.

    For a run in a store this uses its state directory, which is recreated here if it is lost.
    """
    from synthia_batch.cli.commands.run import print_result
    from synthia_batch.core.console import Display
    from synthia_batch.core.log import set_verbosity
    from synthia_batch.job.dotted import merge_values
    from synthia_batch.job.loading.merge import Layer, parse_assignment, read_environment
    from synthia_batch.runner.directory.reopen import FailureChoice
    from synthia_batch.runner.retry import retry_failed

    values: dict[str, object] = {}
    for assignment in settings or []:
        values = merge_values(values, parse_assignment(assignment))
    set_verbosity(quiet=quiet)
    display = Display(quiet=quiet)
    layers = [Layer(origin="flag", values=values), read_environment(os.environ)]
    result = retry_failed(directory, FailureChoice(code=code), layers, display, trusts=trust)
    if result.run is None:
        which = f"with the code {code}" if code else "failed"
        _log.info(f"{directory}: there are no samples {which}; nothing was changed")
        show(_to_json(directory) if as_json else directory)
        return
    _log.info(f"retried {result.chosen} failed samples")
    print_result(result.run, as_json)
    raise typer.Exit(result.run.exit_code)


def _to_json(directory: str) -> str:
    from synthia_batch.core.formatting import encode_json

    return encode_json({"directory": directory, "chosen": 0, "made_now": 0})
