"""The identity of a run on disk: `.synthia/plan.json`, written once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthia_batch.errors import IdentityMismatch
from synthia_batch.store.atomic import publish_bytes
from synthia_batch.store.sealed import digest_of, read_sealed, seal


def plan_digest(plan: Mapping[str, Any]) -> str:
    """Return the SHA-256 of `plan` in hex: the same for the same content, in any order of keys.

    Raises:
        ValueError: A string holds a lone surrogate, or a number is not finite.
        TypeError: JSON has no such value.
    """
    return digest_of(plan)


def write_plan_once(path: Path, plan: Mapping[str, Any]) -> str:
    """Make sure that `path` holds `plan`, and return its digest. Call it under the run's lock.

    Raises:
        IdentityMismatch: `path` holds another plan. Nothing was touched.
        IntegrityError: `path` was altered.
        StorageFailed: It could not be written.
    """
    digest = plan_digest(plan)
    present = read_plan(path)
    if present is None:
        publish_bytes(path, seal(plan))
    elif plan_digest(present) != digest:
        raise IdentityMismatch(
            f"{path} is the plan of another job; nothing was touched\n"
            "  name another output directory with -o, or run the job that began this one"
        )
    return digest


def read_plan(path: Path) -> dict[str, Any] | None:
    """Return the plan of a run, or None where it has none yet.

    Raises:
        IntegrityError: It was altered.
    """
    return read_sealed(path)
