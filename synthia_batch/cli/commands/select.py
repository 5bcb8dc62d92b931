"""`synthia-batch select`: keep some samples of a complete run."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthia_batch.core.errors import NothingSelected
from synthia_batch.core.formatting import encode_json
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from synthia_batch.job.select import Select
    from synthia_batch.runner.selection import SelectResult

_log = logging.getLogger(__name__)
_COMBINED = re.compile(r"(?P<name>[^=]+)=(?P<how>[a-z]+):(?P<text>.+)", re.DOTALL)


def _flag(metavar: str, text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text)


def select(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a complete run.")],
    combine: Annotated[
        list[str] | None, _flag("NAME=HOW:EXPRESSION", "Make one sample of those of a row. [repeatable]")
    ] = None,
    combine_per: Annotated[
        str | None, _flag("NAME", "With --combine: of those of a sample of this run.")
    ] = None,
    where: Annotated[str | None, _flag("EXPRESSION", "Keep samples for which it is true.")] = None,
    best: Annotated[str | None, _flag("EXPRESSION", "Keep of each row the sample with the highest.")] = None,
    per: Annotated[str | None, _flag("NAME", "With --best: of which run's rows. [the earlier one]")] = None,
    top: Annotated[str | None, _flag("COUNT", "With --best: keep so many of each row. [1]")] = None,
    dedup: Annotated[str | None, _flag("EXPRESSION", "Keep of equal values the first sample.")] = None,
    near: Annotated[str | None, _flag("SIMILARITY", "With --dedup: of similar texts, such as 0.85.")] = None,
    decontaminate: Annotated[
        str | None, _flag("EXPRESSION", "Drop texts that share words with --against.")
    ] = None,
    against: Annotated[
        Path | None, _flag("FILE", "With --decontaminate: the benchmark, in any format of an input.")
    ] = None,
    column: Annotated[str | None, _flag("NAME", "With --decontaminate: its column of texts.")] = None,
    ngram: Annotated[int | None, _flag("COUNT", "How many words in a row are equal. [13]")] = None,
    limit: Annotated[str | None, _flag("COUNT", "Keep the first so many.")] = None,
    sample: Annotated[str | None, _flag("COUNT", "Keep so many, drawn by --seed.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides what --sample draws. [0]")] = None,
    output: Annotated[Path | None, _flag("DIR", "[outputs/NAME-FINGERPRINT]", "--output", "-o")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the directory alone.")] = False,
) -> None:
    """Keep samples of a complete run by expressions, as a run of their own; the others are in its failed/.

    An expression is Jinja's: QUESTIONS.json.score >= 7 and topic == 'x', QUESTIONS being the job's name.
    HOW is mean, median, min, max, majority or all, as in --combine score=mean:QUESTIONS.json.score.
    """
    from synthia_batch.results.read.stage_runs import find_result
    from synthia_batch.runner.selection import select_samples

    given: dict[str, Any] = {"combine": _read_combine(combine or [], combine_per), "where": where}
    given |= {"best": best, "per": per, "top": top, "dedup": _join("dedup", dedup, on=dedup, near=near)}
    of_benchmark = {"against": against, "column": column, "ngram": ngram}
    given["decontaminate"] = _join("decontaminate", decontaminate, on=decontaminate, **of_benchmark)
    steps = _read_steps(given | {"limit": limit, "sample": sample, "seed": seed})
    try:
        result = select_samples(find_result(directory), steps, output)
    except NothingSelected as exc:
        if as_json:
            counts = {"samples": exc.samples, "kept": 0, "dropped": exc.dropped}
            show(encode_json({"directory": None, **counts}))
        raise
    _show_result(result, as_json=as_json, quiet=quiet)


def _join(name: str, value: str | None, **keys: Any) -> dict[str, Any] | None:
    """Return the keys of a step whose flag `name` has this value. Raises UsageError for one without it."""
    from synthia_batch.core.errors import UsageError

    if value is not None:
        return {key: one for key, one in keys.items() if one is not None}
    for key, one in keys.items():
        if one is not None:
            raise UsageError(f"--{key} belongs to {name}, which is not set")
    return None


def _read_combine(texts: Sequence[str], per: str | None) -> dict[str, Any] | None:
    """Return the step of NAME=HOW:EXPRESSION, given several times. Raises UsageError."""
    from synthia_batch.core.errors import UsageError
    from synthia_batch.job.select import Combined

    if not texts:
        return _join("combine", None, **{"combine-per": per})
    step: dict[str, Any] = {} if per is None else {"per": per}
    for text in texts:
        found, known = _COMBINED.fullmatch(text), [*Combined.model_fields]
        if found is None or found["how"] not in known or found["name"] in ("per", *step):
            raise UsageError(
                f"--combine {text}: expected NAME=HOW:EXPRESSION, with HOW one of {', '.join(known)}, and "
                "each NAME once"
            )
        step[found["name"]] = {found["how"]: found["text"]}
    return step


def _read_steps(given: dict[str, Any]) -> "Select":
    """Return the steps with these values, of which None are not given. Raises UsageError."""
    from pydantic import ValidationError

    from synthia_batch.core.errors import UsageError
    from synthia_batch.job.select import Select

    try:
        return Select.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        fault = exc.errors()[0]
        if not fault["loc"]:
            raise UsageError(f"--{fault['msg'].partition(', ')[2]}") from exc
        if fault["type"] == "missing":
            raise UsageError(f"--{fault['loc'][0]} needs --{fault['loc'][-1]}, which is not set") from exc
        raise UsageError(f"--{fault['loc'][-1]}: {fault['msg']}, got {fault['input']!r}") from exc


def _show_result(result: "SelectResult", *, as_json: bool, quiet: bool) -> None:
    if as_json:
        values = {"directory": str(result.directory), "samples": result.samples, "kept": result.kept}
        show(encode_json({**values, "dropped": result.dropped}))
        return
    dropped = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in result.dropped.items())
    if not quiet:
        _log.info(f"kept {result.kept} of {result.samples} samples{f' ({dropped})' if dropped else ''}")
    show(result.directory)
