"""The saved job of a run, resolved again."""

import logging
from collections.abc import Sequence
from pathlib import Path

from synthia_batch.core.errors import UsageError
from synthia_batch.job.loading.merge import Layer
from synthia_batch.job.loading.trust import drop_outward, refuse_masked, require_trust
from synthia_batch.job.resolved import ResolvedJob
from synthia_batch.runner.directory.plan import refuse_other_identity
from synthia_batch.runner.resolve import resolve_job
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.plan_file import require_plan
from synthia_batch.storage.remote.download import read_remote_job
from synthia_batch.storage.saved_job import read_job

_log = logging.getLogger(__name__)


def resolve_kept_job(
    directory: Path, command: str, explicit: Sequence[Layer], *, trusts: bool = False
) -> ResolvedJob:
    """Return the job of the run in `directory`, overridden by `explicit`. Changes nothing there.

    Unless the caller `trusts` it, its saved job sends nothing anywhere and runs no code.

    Raises:
        UsageError: `directory` is no run, or has no saved job; the message names `command`. Or it needs
            trust.
    """
    run_dir = RunDir(directory)
    plan = require_plan(run_dir)
    if "select" in plan["identity"]:
        raise UsageError(
            f"{directory} is a selection, which generates nothing; {command} the run that it is of, and "
            "select from that again"
        )
    kept = read_job(run_dir.job, directory)
    if kept is None:
        raise UsageError(f"{directory} has no saved job; run the command that began it once, then {command}")
    job = resolve_job(_add_saved(kept, explicit, directory, trusts))
    refuse_other_identity(job, run_dir)
    return job


def _add_saved(saved: Layer, explicit: Sequence[Layer], place: Path | str, trusts: bool) -> list[Layer]:
    """Return the layers of a job that was saved at `place`, without its outward keys unless trusted."""
    layers = [*explicit, saved]
    if not trusts:
        found = drop_outward(saved, explicit)
        require_trust(found, place)
        if found.dropped:
            _log.info(
                f"{place}: not used of its saved job, since a run directory may come from somebody else: "
                f"{found.describe()}; --trust uses it"
            )
        layers = [*explicit, found.layer]
    refuse_masked(layers)
    return layers


def resolve_remote_job(url: str, explicit: Sequence[Layer], *, trusts: bool = False) -> ResolvedJob:
    """Return the job of the output at `url`, overridden by `explicit`. Changes nothing there."""
    # The output is the address that the user has typed.
    typed = Layer(origin="argument", values={"output": url})
    saved = Layer(origin="the run", values={**read_remote_job(url), "output": url})
    job = resolve_job(_add_saved(saved, [*explicit, typed], url, trusts))
    refuse_other_identity(job, RunDir(job.output))
    return job
