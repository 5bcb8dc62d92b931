"""The saved job of a run, resolved again."""

from collections.abc import Sequence
from pathlib import Path

from synthia_batch.errors import UsageError
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.directory.plan import refuse_other_identity
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.plan_file import require_plan
from synthia_batch.storage.remote.download import read_remote_job
from synthia_batch.storage.saved_job import read_job


def resolve_kept_job(directory: Path, command: str, explicit: Sequence[Layer]) -> ResolvedJob:
    """Return the job of the run in `directory`, overridden by `explicit`. Changes nothing there.

    Raises:
        UsageError: `directory` is no run, or has no saved job; the message names `command`.
    """
    run_dir = RunDir(directory)
    require_plan(run_dir)
    kept = read_job(run_dir.job, directory)
    if kept is None:
        raise UsageError(f"{directory} has no saved job; run the command that began it once, then {command}")
    job = resolve_job([*explicit, kept])
    refuse_other_identity(job, run_dir)
    return job


def resolve_remote_job(url: str, explicit: Sequence[Layer]) -> ResolvedJob:
    """Return the job of the output at `url`, overridden by `explicit`. Changes nothing there."""
    values = {**read_remote_job(url), "output": url}
    job = resolve_job([*explicit, Layer(origin="the run", values=values)])
    refuse_other_identity(job, RunDir(job.output))
    return job
