"""The plan of a run: whose directory it is, what plan.json has, and how shards become files."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import UsageError
from synthia_batch.inputs import Scan, Source
from synthia_batch.job.identity import refuse_differences
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.results.quality.flags import create_flagger
from synthia_batch.runner.directory.assembler import Assembler
from synthia_batch.runner.resolve import select_rows
from synthia_batch.scheduler.acceptance import compile_acceptance
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.parts.schema import PartFormat, list_optional
from synthia_batch.storage.parts.selection import list_runs
from synthia_batch.storage.plan_file import read_plan


def refuse_other_identity(job: ResolvedJob, run_dir: RunDir) -> None:
    """Return if `run_dir` belongs to this job or is free. Changes nothing."""
    refuse_identity(job.identity, run_dir)


def refuse_identity(identity: Mapping[str, Any], run_dir: RunDir) -> None:
    """Return if `run_dir` belongs to what has this identity or is free.

    Raises:
        IdentityMismatch: It belongs to another job.
        UsageError: It is a file, or a directory with other files.
    """
    plan = read_plan(run_dir.plan)
    if plan is not None:
        advice = "run without -o for a new directory, or repeat the job as it was"
        refuse_differences(run_dir.root, plan["identity"], identity, advice)
    elif run_dir.pipeline.exists():
        raise UsageError(f"-o {run_dir.root}: expected a run or an empty directory, got a pipeline's")
    elif run_dir.root.exists() and not run_dir.root.is_dir():
        raise UsageError(f"-o {run_dir.root}: expected a directory, got a file; name a directory")
    elif run_dir.root.exists() and not run_dir.hidden.exists() and any(run_dir.root.iterdir()):
        raise UsageError(f"-o {run_dir.root}: expected a run or an empty directory, got other files")


def scan_input(
    job: ResolvedJob,
    source: Source,
    on_progress: Callable[[int], None] | None = None,
    limit: int | None = None,
) -> Scan:
    """Read the job's whole input once and check it, or only its first `limit` rows."""
    selection = replace(select_rows(job.declared, job.prompt_template), first_rows=limit)
    with tempfile.TemporaryDirectory(prefix="synthia-batch-") as scratch:
        scan = source.scan(selection, Path(scratch), on_progress)
    # What is behind the names of an earlier run's samples is known only now.
    compile_acceptance(job.declared, [column.name for column in scan.kept], list_runs(scan.kept))
    return scan


def make_plan(job: ResolvedJob, scan: Scan) -> dict[str, Any]:
    """Return what plan.json has of a new run.

    Raises:
        UsageError: It keeps samples of an earlier run under its own name: they could not be told apart.
    """
    if job.name in scan.columns.kept_names and any(file.kind == "run" for file in job.inputs):
        raise UsageError(
            f"{job.inputs[0].shown}: the kept column {job.name!r} has the name of the job, which stands for "
            "the new samples; name the job otherwise: --set name=NAME"
        )
    names = [file.name for file in job.inputs]
    return {
        "name": job.name,
        "source_file": names[0],
        **({"source_files": names} if len(names) > 1 else {}),
        "fingerprint": job.fingerprint,
        "identity": job.identity,
        "samples_per_row": job.plan.samples_per_row,
        "scan": scan.to_dict(),
    }


def make_assembler(job: ResolvedJob, source: Source, scan: Scan, plan: Mapping[str, Any]) -> Assembler:
    return Assembler(
        source=source,
        scan=scan,
        plan=job.plan,
        flagging=create_flagger(job.declared),
        part_format=PartFormat(
            model=job.model.name,
            source_file=plan["source_file"],
            source_files=tuple(plan.get("source_files", ())),
            kept=scan.kept,
            optional=list_optional(job.identity),
            metadata=describe_parts(job.fingerprint, job.identity),
        ),
    )


def describe_parts(fingerprint: str, identity: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of every part of the run with this identity."""
    systems = {f"synthia_batch.system.{name}": digest for name, digest in identity["system"]}
    return {"synthia_batch.fingerprint": fingerprint, **systems}
