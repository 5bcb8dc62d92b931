"""The files of a complete run to push to the Hub, after a check of each part."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.core.errors import UsageError
from synthia_batch.storage.atomic import storage_errors
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.plan_file import no_run_error
from synthia_batch.storage.recovery import check_part


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedFile:
    """A file to push. `blob_id` is its git digest, for files outside large file storage."""

    name: str
    path: Path
    bytes: int
    sha256: str
    blob_id: str


def list_pushed_files(
    directory: Path, on_progress: Callable[[int, int], None], *, with_report: bool
) -> list[PushedFile]:
    """Return the card and parts of the complete run in `directory`, and its report on request.

    Raises:
        UsageError: `directory` is not a run directory, or the run is incomplete or has no report.
    """
    run_dir = RunDir(directory)
    manifest = read_manifest(run_dir.manifest)
    if manifest is None:
        if not run_dir.hidden.exists():
            raise no_run_error(directory)
        raise UsageError(
            f"{directory}: only a complete run can be pushed; run its command again first: "
            f"`synthia-batch status {directory}` shows it"
        )
    if with_report and not run_dir.report.exists():
        raise UsageError(f"{directory}: no report.html; write it with `synthia-batch report {directory}`")
    files = [_describe(run_dir.readme, directory)]
    total, done = sum(part.bytes for part in manifest.parts), 0
    for part in manifest.parts:
        done += check_part(directory / part.path, part.entry)
        on_progress(done, total)
        files.append(_describe(directory / part.path, directory))
    return [*files, _describe(run_dir.report, directory)] if with_report else files


def _describe(path: Path, root: Path) -> PushedFile:
    with storage_errors("read", path):
        content = path.read_bytes()
    return PushedFile(
        name=path.relative_to(root).as_posix(),
        path=path,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        # The Hub reports git's digest for files outside large file storage.
        blob_id=hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    )
