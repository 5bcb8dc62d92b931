"""`synthia-batch export`: convert a finished dataset to the formats of other programs."""

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthia_batch.cli.flags import split_names, split_pair
from synthia_batch.cli.run_location import RunLocation, open_location
from synthia_batch.core.terminal import show
from synthia_batch.results.export.formats import FORMATS, ExportFormat

if TYPE_CHECKING:
    from synthia_batch.results.export.pairs import Pairer
    from synthia_batch.results.read.run import Run


def export(
    directory: RunLocation,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=", ".join(FORMATS) + ".")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="May end in .gz. [stdout]")
    ] = None,
    keep_columns: Annotated[str | None, typer.Option(help="Kept input columns to include: a,b,c")] = None,
    rename_column: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Another name for a kept column. Repeatable.")
    ] = None,
    drop_truncated: Annotated[
        bool, typer.Option("--drop-truncated", help="Omit answers that were cut off.")
    ] = False,
    reader: Annotated[
        str | None,
        typer.Option("--for", metavar="spreadsheet", help="With csv: marked as UTF-8, formulas disarmed."),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(metavar="EXPRESSION", help="With preference: the number by which answers are paired."),
    ] = None,
    min_gap: Annotated[float, typer.Option(help="Leave out pairs whose scores are not more apart.")] = 0,
    per: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of which run the answers are. [the earlier one]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
) -> None:
    """Write a finished dataset for TRL, Axolotl, LLaMA-Factory, OpenAI's batch readers or a spreadsheet.

    Of a pipeline, the last stage.
    """
    from synthia_batch.core.formatting import format_count
    from synthia_batch.results.export.kept import name_kept_columns
    from synthia_batch.results.export.pairs import open_pairer
    from synthia_batch.results.export.recipes import describe_use
    from synthia_batch.results.export.writer import write_records
    from synthia_batch.results.read.run import open_complete_run
    from synthia_batch.results.read.stage_runs import find_result

    chosen = _choose_format(to, reader, score, min_gap)
    names = name_kept_columns(
        chosen,
        split_names(keep_columns or ""),
        dict(split_pair(text, "rename-column", "OLD=NEW") for text in rename_column or []),
    )
    with open_location(directory) as location:
        place = find_result(location)
        finished = open_complete_run(place)
        pairer = None
        if score is None:
            records = _convert(chosen, finished, names, drop_truncated)
        else:
            pairer = open_pairer(place, score, per, min_gap=min_gap, drops_truncated=drop_truncated)
            samples = finished.samples(pairer.list_kept(), with_logprobs=pairer.needs_logprobs)
            records = chosen.convert(pairer.pair(samples))
        count = write_records(
            records,
            (*chosen.columns, *names.values()),
            output,
            as_csv=chosen.name == "csv",
            replaces=force,
            for_spreadsheet=reader is not None,
        )
    if pairer is not None:
        _tell_left_out(pairer)
    where = f" to {output}" if output else ""
    show(f"{format_count(count, 'record')}{where}", file=sys.stderr)
    if output is not None:
        show(describe_use(chosen.name, output), file=sys.stderr)


def _choose_format(to: str, reader: str | None, score: str | None, min_gap: float) -> ExportFormat:
    """Return the format named `to`, if the flags beside it belong to it."""
    chosen = FORMATS.get(to)
    if chosen is None:
        raise typer.BadParameter(f"--to {to}: unknown format; choose one of {', '.join(FORMATS)}")
    if reader is not None and (reader != "spreadsheet" or chosen.name != "csv"):
        raise typer.BadParameter(f"--for {reader}: expected --to csv --for spreadsheet")
    if chosen.takes_pairs and score is None:
        raise typer.BadParameter(f"--to {to}: expected --score EXPRESSION, such as judge.json.score")
    if not 0 <= min_gap < math.inf:
        raise typer.BadParameter(f"--min-gap {min_gap}: expected a number of at least 0")
    if score is not None and not chosen.takes_pairs:
        raise typer.BadParameter(f"--score: --to {to} has no pairs; choose --to preference")
    return chosen


def _convert(
    chosen: ExportFormat, finished: "Run", names: Mapping[str, str], drops_truncated: bool
) -> Iterator[dict[str, Any]]:
    """Return the records of single samples, with the kept columns `names`."""
    from synthia_batch.results.export.kept import rename_kept

    samples = rename_kept(finished.samples(tuple(names), with_logprobs=chosen.takes_logprobs), names)
    if drops_truncated:
        samples = (sample for sample in samples if not sample.is_cut_off)
    return chosen.convert(samples, **({"failed": finished.failed()} if chosen.takes_failed else {}))


def _tell_left_out(pairer: "Pairer") -> None:
    """Say how many prompts have no pair, and on how many samples the score failed."""
    from synthia_batch.core.formatting import format_count

    if pairer.left_out:
        left = format_count(pairer.left_out, "prompt")
        why = f"fewer than two different answers with a score, or not more than {pairer.min_gap:g} apart"
        show(f"{left} left out: {why}", file=sys.stderr)
    if pairer.faults:
        failed = format_count(pairer.faults, "sample")
        show(f"the score failed on {failed}, such as {pairer.first_fault}", file=sys.stderr)
