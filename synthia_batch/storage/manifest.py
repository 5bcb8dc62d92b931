"""What a run became: `manifest.json`, written last. Its existence says that the run is complete."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.errors import IntegrityError
from synthia_batch.storage.atomic import publish_bytes, remove_file, sync_directory
from synthia_batch.storage.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.storage.layout import RunDir
from synthia_batch.storage.ledger import PartEntry

FORMAT_VERSION = 2
"""Of the run directory as a whole. Readers refuse any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestPart:
    """A published file. `path` is relative to the run directory, with forward slashes.

    `sha256` is that of the file, `rows_digest` that of its rows: it is the same for the same rows
    whichever version of pyarrow wrote them, see row_digest.
    """

    path: str
    sha256: str
    bytes: int
    rows: int
    rows_digest: str

    @property
    def entry(self) -> PartEntry:
        """What the ledger says of it."""
        return PartEntry(sha256=self.sha256, bytes=self.bytes, rows=self.rows, rows_digest=self.rows_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole result. Holds nothing of time, host, workers or attempts: same run, same bytes.

    `samples` is `finished` + `failed`.
    """

    plan_digest: str
    fingerprint: str
    rows: int
    samples: int
    finished: int
    failed: int
    parts: tuple[ManifestPart, ...]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Declare the run complete. Every part must be published, and so durable, before.

    Raises:
        StorageFailed: It could not be written.
    """
    publish_bytes(
        path, encode_checksummed({"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)})
    )


def withdraw_manifest(run_dir: RunDir) -> None:
    """Declare the run not complete any more, durably: parts of it are about to change or to go.

    The card goes with the manifest, since its counts are no longer true.

    Raises:
        StorageFailed: The manifest may still be there: nothing that it claims may be touched.
    """
    remove_file(run_dir.manifest)
    # Before anything else: a manifest that power brings back would claim parts that are gone.
    sync_directory(run_dir.root)
    remove_file(run_dir.readme)


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of a complete run, or None where the run is not complete.

    Raises:
        IntegrityError: It was altered, or another version of the package wrote it.
    """
    value = read_checksummed(path)
    if value is None:
        return None
    version = value.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise IntegrityError(
            f"{path} has format version {version}; this version of synthia-batch reads {FORMAT_VERSION}\n"
            "  use the version that made it"
        )
    return _decode(value)


def _decode(value: dict[str, Any]) -> Manifest:
    # The digest was right, so the fields are those that this format version writes.
    parts = tuple(ManifestPart(**part) for part in value.pop("parts"))
    return Manifest(**value, parts=parts)
