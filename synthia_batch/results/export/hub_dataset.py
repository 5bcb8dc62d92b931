"""What of a run goes to the Hub: the files of a complete one, each found to be what it must be."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from synthia_batch.errors import UsageError
from synthia_batch.storage.atomic import storage_errors
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.manifest import read_manifest
from synthia_batch.storage.plan_file import no_run_error
from synthia_batch.storage.recovery import check_part


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedFile:
    """A file as it will be on the Hub. `blob_id` is git's digest of it, for files that git itself holds."""

    name: str
    path: Path
    bytes: int
    sha256: str
    blob_id: str


def list_pushed_files(
    directory: Path, on_progress: Callable[[int, int], None], *, with_report: bool
) -> list[PushedFile]:
    """Return the card and the parts of the complete run in `directory`, and its report if that is wanted.

    Raises:
        UsageError: It is no run directory, or the run is not complete, or has no report.
        IntegrityError: A part is not what was published.
        StorageFailed: A file cannot be read.
    """
    run_dir = RunDir(directory)
    manifest = read_manifest(run_dir.manifest)
    if manifest is None:
        if not run_dir.hidden.exists():
            raise no_run_error(directory)
        raise UsageError(
            f"{directory}: the run is not complete, and half a dataset is not pushed; run its command again "
            f"first: `synthia-batch status {directory}` shows it"
        )
    if with_report and not run_dir.report.exists():
        raise UsageError(f"{directory}: has no report.html; make one with `synthia-batch report {directory}`")
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
        # Git's own name for a file: what the Hub tells of those that are not in large file storage.
        blob_id=hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    )
