"""The result of a run: `manifest.json`, written last. Its existence marks the run as complete."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthia_batch.core.checksummed_json import encode_checksummed, read_checksummed
from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import Shard
from synthia_batch.storage.atomic import publish_bytes, remove_file, sync_directory
from synthia_batch.storage.layout import KEYS, RunDir
from synthia_batch.storage.ledger import PartEntry, ShardEntry

FORMAT_VERSION = 2
"""Format of the run directory as a whole. Readers refuse any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestPart:
    """A published file. `path` is relative to the run directory, with forward slashes.

    `sha256` is of the file. `rows_digest` is of its rows, whichever version of pyarrow wrote them; see
    row_digest.
    """

    path: str
    sha256: str
    bytes: int
    rows: int
    rows_digest: str

    @property
    def entry(self) -> PartEntry:
        return PartEntry(sha256=self.sha256, bytes=self.bytes, rows=self.rows, rows_digest=self.rows_digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole result. Free of time, host, workers and attempts: same run, same bytes.

    `samples` is `finished` + `failed`.
    """

    plan_digest: str
    fingerprint: str
    rows: int
    samples: int
    finished: int
    failed: int
    parts: tuple[ManifestPart, ...]

    def list_entries(self, shards: Iterable[Shard], epoch: int) -> dict[int, ShardEntry]:
        """Return the ledger entries of these parts, as of `epoch`, by shard number."""
        entries = {part.path: part.entry for part in self.parts}
        return {
            shard.number: ShardEntry(
                shard=shard.number,
                epoch=epoch,
                data=entries.get(KEYS.data_part(shard).as_posix()),
                failed=entries.get(KEYS.failed_part(shard).as_posix()),
            )
            for shard in shards
        }


def list_parts(shards: Iterable[Shard], latest: Mapping[int, ShardEntry]) -> tuple[ManifestPart, ...]:
    """Return every part in the ledger's `latest` entries, in the order of shards, data before failed."""
    return tuple(
        ManifestPart(path=path.as_posix(), **dataclasses.asdict(entry))
        for shard in shards
        if (shard_entry := latest.get(shard.number)) is not None
        for path, entry in (
            (KEYS.data_part(shard), shard_entry.data),
            (KEYS.failed_part(shard), shard_entry.failed),
        )
        if entry is not None
    )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Mark the run as complete. Every part must already be published, and so durable."""
    publish_bytes(
        path, encode_checksummed({"format_version": FORMAT_VERSION, **dataclasses.asdict(manifest)})
    )


def withdraw_manifest(run_dir: RunDir) -> None:
    """Mark the run as incomplete, durably, before its parts change or are removed.

    The dataset card is removed too, since its counts no longer hold.
    """
    remove_file(run_dir.manifest)
    # Before anything else: a manifest restored by power loss would list parts that are gone.
    sync_directory(run_dir.root)
    remove_file(run_dir.readme)


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest of a complete run, or None if the run is not complete.

    Raises:
        IntegrityError: It was altered, or another version of the package wrote it.
    """
    value = read_checksummed(path)
    if value is None:
        return None
    version = value.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise IntegrityError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}\n"
            "  use the version of synthia-batch that wrote it"
        )
    return _decode(value)


def _decode(value: dict[str, Any]) -> Manifest:
    # The digest matched, so the fields are those of this format version.
    parts = tuple(ManifestPart(**part) for part in value.pop("parts"))
    return Manifest(**value, parts=parts)
