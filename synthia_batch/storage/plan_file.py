"""The identity of a run on disk: `.synthia/plan.json`, written once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthia_batch.core.checksummed_json import digest_of, encode_checksummed, read_checksummed
from synthia_batch.core.errors import IdentityMismatch, UsageError
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.pipeline_file import list_trials


def plan_digest(plan: Mapping[str, Any]) -> str:
    """Return the SHA-256 of `plan` in hex, independent of the order of keys."""
    return digest_of(plan)


def write_plan_once(path: Path, plan: Mapping[str, Any]) -> str:
    """Write `plan` to `path` unless it is there, and return its digest. Call it under the run's lock.

    Raises:
        IdentityMismatch: `path` holds another plan. Nothing was changed.
    """
    digest = plan_digest(plan)
    present = read_plan(path)
    if present is None:
        publish_bytes(path, encode_checksummed(plan))
    elif plan_digest(present) != digest:
        raise IdentityMismatch(
            f"{path} is the plan of another job; nothing was touched\n"
            "  choose another output directory with -o, or run the job that began this one"
        )
    return digest


def read_plan(path: Path) -> dict[str, Any] | None:
    """Return the plan of a run, or None if it has none yet."""
    return read_checksummed(path)


def require_plan(run_dir: RunDir) -> dict[str, Any]:
    """Return the plan of a run.

    Raises:
        UsageError: It has none: this is not a run directory.
    """
    plan = read_plan(run_dir.plan)
    if plan is None:
        raise no_run_error(run_dir.root)
    return plan


def no_run_error(directory: Path) -> UsageError:
    if (stages := RunDir(directory).stages).is_dir():
        names = ", ".join(sorted(path.name for path in stages.iterdir()))
        return UsageError(f"{directory}: a pipeline, whose stages are runs; name one in {stages}: {names}")
    if trials := list_trials(directory):
        names = ", ".join(map(str, trials))
        return UsageError(f"{directory}: a pipeline that has not begun; rows of it were tried in {names}")
    return UsageError(f"{directory}: not a run directory; name one under outputs/")
