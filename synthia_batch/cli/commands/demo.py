"""`synthia-batch demo`: a first dataset, from questions that the package brings along."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from synthia_batch.core.terminal import show


def demo(
    engine: Annotated[
        str | None, typer.Option(help="vllm, or scripted for a rehearsal without a model. [vllm]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Answer 28 sample questions with the embedded model, in this directory: some minutes on two cores.

    Writes questions.jsonl here and a dataset below outputs/.
    """
    from synthia_batch.cli.commands.run import print_result
    from synthia_batch.core.console import Display
    from synthia_batch.core.log import set_verbosity
    from synthia_batch.job.loading.merge import Layer, read_environment
    from synthia_batch.operations.demo import make_demo_layer, place_sample
    from synthia_batch.runner.resolve import resolve_job
    from synthia_batch.runner.run import run_resolved_job

    set_verbosity(quiet=quiet)
    # A rehearsal needs no processes of its own.
    values: dict[str, object] = {"engine": {"kind": engine}} if engine else {}
    values |= {"pool": {"kind": "local"}} if engine == "scripted" else {}
    sample = place_sample(Path())
    layers = [Layer(origin="flag", values=values), read_environment(os.environ), make_demo_layer(sample)]
    result = run_resolved_job(resolve_job(layers), Display(quiet=quiet))
    print_result(result, as_json, quiet=quiet)
    if result.drained is None:
        show(
            f"look at it with: synthia-batch status {shlex.quote(str(result.directory))}\n"
            "for your own file: synthia-batch init FILE, or synthia-batch run FILE",
            file=sys.stderr,
        )
    raise typer.Exit(result.exit_code)
