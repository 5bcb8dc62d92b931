"""`synthia-batch select`: keep some samples of a complete run."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from synthia_batch.core.terminal import show

_log = logging.getLogger(__name__)


def select(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a complete run.")],
    where: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Keep samples for which it is true.")
    ] = None,
    best: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Keep of each row the sample with the highest.")
    ] = None,
    per: Annotated[
        str | None, typer.Option(metavar="NAME", help="With --best: of which run's rows. [the earlier one]")
    ] = None,
    top: Annotated[
        str | None, typer.Option(metavar="COUNT", help="With --best: keep so many of each row. [1]")
    ] = None,
    dedup: Annotated[
        str | None, typer.Option(metavar="EXPRESSION", help="Keep of equal values the first sample.")
    ] = None,
    near: Annotated[
        str | None, typer.Option(metavar="SIMILARITY", help="With --dedup: of similar texts, such as 0.85.")
    ] = None,
    limit: Annotated[str | None, typer.Option(metavar="COUNT", help="Keep the first so many.")] = None,
    sample: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Keep so many, drawn by --seed.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides what --sample draws. [0]")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="[outputs/NAME-FINGERPRINT]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the directory alone.")] = False,
) -> None:
    """Keep samples of a complete run by expressions, as a run of their own; the others are in its failed/.

    An expression is Jinja's: QUESTIONS.json.score >= 7 and topic == 'x', QUESTIONS being the job's name.
    """
    from pydantic import ValidationError

    from synthia_batch.core.formatting import encode_json
    from synthia_batch.errors import UsageError
    from synthia_batch.job.select import Select
    from synthia_batch.results.read.stage_runs import find_result
    from synthia_batch.runner.selection import select_samples

    given: dict[str, Any] = {"where": where, "best": best, "per": per, "top": top}
    if near is not None and dedup is None:
        raise UsageError("--near belongs to dedup, which is not set")
    given["dedup"] = dedup if near is None else {"on": dedup, "near": near}
    given |= {"limit": limit, "sample": sample, "seed": seed}
    try:
        steps = Select.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        fault = exc.errors()[0]
        if not fault["loc"]:
            raise UsageError(f"--{fault['msg'].partition(', ')[2]}") from exc
        raise UsageError(f"--{fault['loc'][-1]}: {fault['msg']}, got {fault['input']!r}") from exc
    result = select_samples(find_result(directory), steps, output)
    if as_json:
        values = {"directory": str(result.directory), "samples": result.samples, "kept": result.kept}
        show(encode_json({**values, "dropped": result.dropped}))
        return
    dropped = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in result.dropped.items())
    if not quiet:
        _log.info(f"kept {result.kept} of {result.samples} samples{f' ({dropped})' if dropped else ''}")
    show(result.directory)
