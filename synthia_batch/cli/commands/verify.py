"""`synthia-batch verify`: check that a run directory holds exactly what its run wrote."""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthia_batch.cli.run_location import RunLocation, open_location, require_directory
from synthia_batch.core.formatting import encode_json, format_count
from synthia_batch.core.terminal import show

if TYPE_CHECKING:
    from synthia_batch.operations.rerun import RerunResult, RerunSelection
    from synthia_batch.results.read.stage_runs import StageRun
    from synthia_batch.results.verify.repair import RepairResult
    from synthia_batch.results.verify.verify import Verification
    from synthia_batch.storage.recovery import OnProgress

EXIT_DAMAGED = 4
SHOWN_DIFFERENCES = 10


def verify(
    directory: RunLocation,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove damaged parts; the next run regenerates them.")
    ] = False,
    rows: Annotated[
        bool, typer.Option("--rows", help="Also decode every row and compare the rows' digest.")
    ] = False,
    rerun: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Regenerate N finished samples and compare.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for the selection of --rerun.")] = 0,
    trust: Annotated[
        bool, typer.Option("--trust", help="With --rerun: the run is yours; use addresses and code it names.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Check every file of a run: checksums, pages, columns, order, and one output per sample.

    For a run in a store, every byte is downloaded and checked. Of a pipeline every stage is, and that each is
    made of the one before.

    With --rerun N, regenerate N of its samples in different batches instead, and compare them.
    """
    from synthia_batch.core.console import ReadingDisplay

    if rerun is not None:
        from synthia_batch.operations.rerun import RerunSelection

        if repair:
            raise typer.BadParameter("--repair and --rerun cannot be combined; run one after the other")
        _rerun(
            require_directory(directory, "--rerun"),
            RerunSelection(count=rerun, seed=seed),
            as_json,
            quiet,
            trust,
        )
    if repair:
        require_directory(directory, "--repair")
    with ReadingDisplay(quiet=quiet) as display, open_location(directory) as place:
        if repair:
            from synthia_batch.results.verify.repair import repair_run

            repaired = repair_run(place, display.show)
            damaged = bool(repaired.remaining)
            text = _repair_to_json(place, repaired) if as_json else _describe_repair(place, repaired)
        else:
            from synthia_batch.results.read.stage_runs import read_stage_runs

            stages = read_stage_runs(place)
            found = _verify_all(place, stages, directory, display.show, rows)
            damaged = any(one.findings for one in found)
            told = [one.to_dict() for one in found]
            ahead = [stage.name for stage in stages or () if stage.run is None and stage.lost is None]
            of_pipeline = {"directory": directory, "stages": told, "not_begun": ahead}
            lines = [*map(_describe, found), *(f"stage {name}: not begun" for name in ahead)]
            text = encode_json(told[0] if stages is None else of_pipeline) if as_json else "\n".join(lines)
    show(text)
    raise typer.Exit(EXIT_DAMAGED if damaged else 0)


def _verify_all(
    place: Path,
    stages: "Sequence[StageRun] | None",
    shown: str,
    on_progress: "OnProgress",
    decodes_rows: bool,
) -> "list[Verification]":
    """Return what is found of a run, or of each of the `stages` of a pipeline."""
    from synthia_batch.results.verify.stages import verify_stages
    from synthia_batch.results.verify.verify import verify_run

    if stages is not None:
        return verify_stages(stages, on_progress, decodes_rows=decodes_rows)
    return [replace(verify_run(place, on_progress, decodes_rows=decodes_rows), directory=shown)]


def _rerun(directory: Path, selection: "RerunSelection", as_json: bool, quiet: bool, trusts: bool) -> None:
    from synthia_batch.core.console import Display
    from synthia_batch.core.log import set_verbosity
    from synthia_batch.job.loading.merge import read_environment
    from synthia_batch.operations.rerun import rerun_samples

    set_verbosity(quiet=quiet)
    display = Display(quiet=quiet)
    result = rerun_samples(directory, selection, [read_environment(os.environ)], display, trusts=trusts)
    display.close()
    show(_rerun_to_json(result) if as_json else _describe_rerun(result))
    if result.differences:
        raise typer.Exit(EXIT_DAMAGED)
    raise typer.Exit(result.stopped.exit_code if result.stopped else 0)


def _describe_rerun(result: "RerunResult") -> str:
    # The first one in detail, only the numbers of the others.
    lines = [str(result.differences[0])] if result.differences else []
    others = [str(one.sample.ordinal) for one in result.differences[1:SHOWN_DIFFERENCES]]
    if others:
        more = len(result.differences) - 1 - len(others)
        lines.append(f"also different: samples {', '.join(others)}" + (f" and {more} more" if more else ""))
    if result.stopped:
        lines.append(f"stopped on {result.stopped.label}")
    if result.differences and result.determinism == "fast":
        lines.append("the run uses fast determinism, which does not promise equal tokens")
    lines.append(
        f"{result.directory}: {result.compared} of {result.finished} finished samples regenerated, at most "
        f"{result.batch} at a time: {len(result.differences) or 'none'} differ"
    )
    return "\n".join(lines)


def _rerun_to_json(result: "RerunResult") -> str:
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    values["differences"] = [one.to_dict() for one in result.differences]
    values["stopped"] = result.stopped and result.stopped.label
    return encode_json(values)


def _describe(found: "Verification") -> str:
    lines = [str(finding) for finding in found.findings]
    if found.owner is not None:
        lines.append(
            f"pid {found.owner.pid} on {found.owner.host} is running it: only published files were checked"
        )
    if found.leftovers and not found.findings:
        left = format_count(found.leftovers, "file")
        lines.append(f"{left} left over from a crash; the next run cleans up")
    verdict = format_count(len(found.findings), "finding") if found.findings else "no findings"
    lines.append(
        f"{found.directory}: {verdict}: {found.state}, {found.shards_published} of {found.shards} shards "
        f"published, {found.samples} samples, {found.bytes / 1e6:.1f} MB read in {found.seconds:.1f} s "
        f"({found.megabytes_per_second:.0f} MB/s)"
    )
    return "\n".join(lines)


def _describe_repair(directory: Path, repaired: "RepairResult") -> str:
    lines = [*repaired.done, *(str(finding) for finding in repaired.remaining)]
    result = "repaired" if repaired.done else "nothing to repair"
    hint = "; run its command again to complete it" if repaired.is_to_run else ""
    return "\n".join([*lines, f"{directory}: {result}{hint}"])


def _repair_to_json(directory: Path, repaired: "RepairResult") -> str:
    return encode_json(
        {
            "directory": str(directory),
            "done": list(repaired.done),
            "remaining": [finding.to_dict() for finding in repaired.remaining],
            "is_to_run": repaired.is_to_run,
        },
    )
