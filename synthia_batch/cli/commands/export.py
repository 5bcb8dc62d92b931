"""`synthia-batch export`: convert a finished dataset to the formats of other programs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from synthia_batch.cli.flags import split_names, split_pair
from synthia_batch.cli.run_location import RunLocation, open_location
from synthia_batch.core.terminal import show
from synthia_batch.results.export.formats import FORMATS


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
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
) -> None:
    """Write a finished dataset for TRL, Axolotl, LLaMA-Factory, OpenAI's batch readers or a spreadsheet."""
    from synthia_batch.results.export.kept import name_kept_columns, rename_kept
    from synthia_batch.results.export.recipes import describe_use
    from synthia_batch.results.export.writer import write_records
    from synthia_batch.results.read.run import open_complete_run

    chosen = FORMATS.get(to)
    if chosen is None:
        raise typer.BadParameter(f"--to {to}: unknown format; choose one of {', '.join(FORMATS)}")
    names = name_kept_columns(
        chosen,
        split_names(keep_columns or ""),
        dict(split_pair(text, "rename-column", "OLD=NEW") for text in rename_column or []),
    )
    with open_location(directory) as place:
        finished = open_complete_run(place)
        samples = rename_kept(finished.samples(tuple(names), with_logprobs=chosen.takes_logprobs), names)
        if drop_truncated:
            samples = (sample for sample in samples if not sample.is_cut_off)
        records = chosen.convert(samples, **({"failed": finished.failed()} if chosen.takes_failed else {}))
        count = write_records(
            records, (*chosen.columns, *names.values()), output, as_csv=chosen.name == "csv", replaces=force
        )
    where = f" to {output}" if output else ""
    show(f"{count} records{where}", file=sys.stderr)
    if output is not None:
        show(describe_use(chosen.name, output), file=sys.stderr)
