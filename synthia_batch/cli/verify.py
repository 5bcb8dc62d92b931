"""`synthia-batch verify`: whether a run directory holds what its run wrote."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from synthia_batch.verify.repair import RepairResult
    from synthia_batch.verify.verification import Verification

EXIT_DAMAGED = 4


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop what is damaged; the next run makes it again.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Check every file of a run: checksums, pages, columns, order, and one output per sample."""
    from synthia_batch.display import ReadingDisplay

    with ReadingDisplay(quiet=quiet) as display:
        if repair:
            from synthia_batch.verify.repair import repair_run

            repaired = repair_run(directory, display.show)
            damaged = bool(repaired.remaining)
            text = _repair_to_json(directory, repaired) if as_json else _describe_repair(directory, repaired)
        else:
            from synthia_batch.verify.verification import verify_run

            found = verify_run(directory, display.show)
            damaged = bool(found.findings)
            text = json.dumps(found.to_dict(), ensure_ascii=False) if as_json else _describe(found)
    print(text)
    raise typer.Exit(EXIT_DAMAGED if damaged else 0)


def _describe(found: "Verification") -> str:
    lines = [str(finding) for finding in found.findings]
    if found.owner is not None:
        lines.append(
            f"pid {found.owner.pid} on {found.owner.host} is running it: only what is published was checked"
        )
    if found.leftovers and not found.findings:
        lines.append(f"{found.leftovers} files are left of a crash: the next run removes them")
    what = f"{len(found.findings)} findings" if found.findings else "nothing is wrong"
    lines.append(
        f"{found.directory}: {what}: {found.state}, {found.shards_published} of {found.shards} shards "
        f"published, {found.samples} samples, {found.bytes / 1e6:.1f} MB read in {found.seconds:.1f} s "
        f"({found.megabytes_per_second:.0f} MB/s)"
    )
    return "\n".join(lines)


def _describe_repair(directory: Path, repaired: "RepairResult") -> str:
    lines = [*repaired.done, *(str(finding) for finding in repaired.remaining)]
    what = "repaired" if repaired.done else "there was nothing to repair"
    hint = "; run its command again to complete it" if repaired.is_to_run else ""
    return "\n".join([*lines, f"{directory}: {what}{hint}"])


def _repair_to_json(directory: Path, repaired: "RepairResult") -> str:
    return json.dumps(
        {
            "directory": str(directory),
            "done": list(repaired.done),
            "remaining": [finding.to_dict() for finding in repaired.remaining],
            "is_to_run": repaired.is_to_run,
        },
        ensure_ascii=False,
    )
