"""Directories of complete runs: each finished sample is a row.

A row has the columns that the run kept of its input, and all others in one column of structs, named after
the run's job: `topic`, `questions.response`. Its id is that of the sample's row, with the system message's
name and the sample's number behind it where there are several: `7/synthia/0`.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthia_batch.core.checksummed_json import read_checksummed
from synthia_batch.core.digest import digest_json
from synthia_batch.core.errors import InputRefused, IntegrityError, UsageError
from synthia_batch.core.formatting import format_count
from synthia_batch.inputs.fetch.file_types import LocatedFile, get_kind
from synthia_batch.inputs.fetch.normalize import NormalizedFile, get_normalized_copy, write_facts

_log = logging.getLogger(__name__)

VERSION = 1
"""Increased when the same run would give other rows."""
PLAN, MANIFEST = ".synthia/plan.json", "manifest.json"


def is_run(path: Path) -> bool:
    """Return whether `path` is the directory of a run, complete or not."""
    return (path / PLAN).is_file()


def normalize_run(found: LocatedFile, *, makes: bool = True) -> NormalizedFile:
    """Return a Parquet file of the run's finished samples, created if missing.

    Its digest is that of the samples' values, not of the run's files or their place.

    Raises:
        UsageError: The run is not complete, or another version made it.
        InputRefused: It was altered, or has no finished sample.
    """
    kind = get_kind("run")
    plan, manifest, rows = _read_records(found)
    parts, digest = _list_parts(manifest), _digest(rows, manifest)
    if not parts:
        raise InputRefused([f"{found.shown}: all samples of the run failed: there are no rows"])
    for part in parts:
        _check_size(found.path / part["path"], part["bytes"], found.shown)
    if manifest["failed"] and "select" in plan["identity"]:
        dropped = format_count(manifest["failed"], "sample")
        _log.info(f"{found.shown}: {dropped} that it has not kept: no rows")
    elif manifest["failed"]:
        _log.info(
            f"{found.shown}: {format_count(manifest['failed'], 'failed sample')} of the run: no rows; "
            f"`synthia-batch retry {found.shown}` tries again"
        )

    def build(target: Path) -> None:
        from synthia_batch.inputs.fetch.arrow import write_samples

        target.mkdir()
        for part in parts:
            _check_part(found.path / part["path"], part["sha256"], found.shown)
        files = [found.path / part["path"] for part in parts]
        write_samples(files, target / kind.rows_name, found.shown, **rows)
        write_facts(target, kind.rows_name, digest)

    copy = get_normalized_copy(digest[:32], build, found, makes=makes)
    return dataclasses.replace(copy, kind=kind)


def digest_run(directory: Path) -> str:
    """Return the digest of a complete run as an input. Raises as `normalize_run`."""
    _, manifest, rows = _read_records(LocatedFile(path=directory, shown=directory))
    return _digest(rows, manifest)


def _digest(rows: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    return digest_json(["run", VERSION, rows, [part["rows_digest"] for part in _list_parts(manifest)]])


def _list_parts(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [part for part in manifest["parts"] if part["path"].startswith("data/")]


def _read_records(found: LocatedFile) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the run's plan and manifest, and the arguments of `write_samples` that make its rows."""
    try:
        plan, manifest = read_checksummed(found.path / PLAN), read_checksummed(found.path / MANIFEST)
        if plan is None or manifest is None:
            raise UsageError(
                f"{found.shown}: the run is not complete, so its samples are no input yet; "
                f"`synthia-batch status {found.shown}` shows how to finish it"
            )
        rows = _describe_rows(plan, manifest, found.shown)
        _digest(rows, manifest)
    except IntegrityError as exc:
        raise InputRefused([f"{found.shown}: {exc}"]) from exc
    except (KeyError, TypeError) as exc:
        raise UsageError(
            f"{found.shown}: another version of synthia-batch made this run ({exc!r}); "
            f"name its files instead: {found.shown}/data"
        ) from exc
    return plan, manifest, rows


def _describe_rows(plan: Mapping[str, Any], manifest: Mapping[str, Any], shown: Path | str) -> dict[str, Any]:
    """Return the arguments of `write_samples` that decide what the rows are."""
    name, kept = plan["name"], [column["name"] for column in plan["scan"]["kept"]]
    if name in ("id", *kept):
        raise UsageError(
            f"{shown}: the run kept a column {name!r}, which is also the name of its job; name its files "
            f"instead: {shown}/data"
        )
    return {
        "name": name,
        "kept": kept,
        "has_systems": len(plan["identity"]["system"]) > 1,
        "has_numbers": plan["identity"]["num_samples"] > 1,
    }


def _check_size(path: Path, size: int, shown: Path | str) -> None:
    """Refuse a part of another size. Its content is checked when its rows are copied."""
    try:
        found = path.stat().st_size
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror}") from exc
    if found != size:
        raise _refuse_altered(path, shown)


def _check_part(path: Path, sha256: str, shown: Path | str) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise _refuse_altered(path, shown)


def _refuse_altered(path: Path, shown: Path | str) -> InputRefused:
    return InputRefused(
        [f"{path}: changed since the run was complete; `synthia-batch verify {shown} --repair` mends it"]
    )
