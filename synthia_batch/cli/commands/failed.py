"""`synthia-batch failed`: list failed samples, and what to do about them."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from synthia_batch.cli.run_location import RunLocation, open_location
from synthia_batch.core.formatting import encode_json, format_count
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from pathlib import Path

    from synthia_batch.results.read.failures import FailedSample


def failed(
    directory: RunLocation,
    code: Annotated[str | None, typer.Option(help="Only samples that failed with this code.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List the failed samples with file:line. Only reads; works while the run is in progress.

    Of a pipeline, those of each stage; one whose directory is missing is named.

    Counts by code and the next command go to stderr.

    Example: synthia-batch failed outputs/questions-1a2b3c4d --code prompt_too_long
    """
    from synthia_batch.results.read.failures import list_failures
    from synthia_batch.results.read.stage_runs import read_stage_runs
    from synthia_batch.results.verify.stages import miss_stage

    with open_location(directory) as place:
        stages = read_stage_runs(place)
        for stage in stages or []:
            if stage.lost is not None:
                show(miss_stage(stage, stage.lost), file=sys.stderr)
        begun = [(stage.name, stage.run) for stage in stages or [] if stage.run is not None]
        outdated = {stage.name for stage in stages or [] if stage.run is not None and not stage.is_current}
        for name, run in [("", place)] if stages is None else begun:
            of_stage = {"stage": name} if name else {}
            counts: Counter[str] = Counter()
            for sample in list_failures(run):
                counts[sample.code] += 1
                if code in (None, sample.code):
                    show(encode_json({**of_stage, **sample.to_dict()}) if as_json else _describe(sample))
            sys.stdout.flush()
            shown = str(run) if name else directory
            show(_summarize(shown, run, code, counts, is_outdated=name in outdated), file=sys.stderr)


def _describe(sample: "FailedSample") -> str:
    from synthia_batch.core.formatting import shorten

    place = shorten(sample.place)
    name = "" if sample.id is None else f"id {shorten(sample.id, 40)}, "
    return f"{place}: {sample.code}: {shorten(sample.message)} ({name}sample {sample.sample_index})"


def _summarize(shown: str, run: "Path", code: str | None, counts: Counter[str], *, is_outdated: bool) -> str:
    if not counts:
        return f"{shown}: no sample has failed"
    from synthia_batch.job.select import NOT_SELECTED
    from synthia_batch.results.read.failed_rows import read_failed_rows
    from synthia_batch.results.read.failures import advise_on_failures

    dropped = f", not selected: {counts[NOT_SELECTED]:,}" if counts[NOT_SELECTED] else ""
    lines = [f"failed: {counts.total() - counts[NOT_SELECTED]:,}{dropped}, by code:"]
    lines += [f"  {name:<24} {count:>9,}" for name, count in counts.most_common()]
    if [*counts] == [NOT_SELECTED]:
        lines = [f"{format_count(counts[NOT_SELECTED], 'sample')} not selected (no failures)"]
    if code is not None and code not in counts:
        lines.append(f"none with the code {code}")
        return "\n".join(lines)
    if is_outdated:
        lines.append("a stage before it has changed: run the pipeline again, it makes this one anew")
        return "\n".join(lines)
    codes = [code] if code is not None else list(counts)
    return "\n".join([*lines, *advise_on_failures(shown, codes, read_failed_rows(run))])
