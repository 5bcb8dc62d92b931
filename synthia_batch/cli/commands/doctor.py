"""`synthia-batch doctor`: check this machine, and whether a job will fit on it."""

from typing import Annotated

import typer

from synthia_batch.cli.flags import JobFlags
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show

EXIT_UNHEALTHY = 2
_MARKS = {"ok": "ok ", "unknown": " ? ", "bad": "BAD"}


def doctor(
    flags: JobFlags, as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False
) -> None:
    """Check engine, GPUs, memory, Ray and disk, and whether a job will fit. Exits with 0 or 2.

    Of a pipeline, whether each of its stages will.
    """
    from synthia_batch.operations.doctor import examine_job, examine_machine
    from synthia_batch.operations.pipeline_doctor import examine_stages

    layers = flags.read_layers()
    pipeline = flags.find_pipeline(layers)
    if pipeline is not None:
        found = examine_stages(pipeline, layers[:-1])
    else:
        found = examine_job(layers) if any(layer.values for layer in layers) else examine_machine()
    if as_json:
        show(encode_json(found.to_dict(), indent=2))
    else:
        for check in found.checks:
            show(f"{_MARKS[check.state]} {check.name}: {check.text}")
    raise typer.Exit(0 if found.is_healthy else EXIT_UNHEALTHY)
