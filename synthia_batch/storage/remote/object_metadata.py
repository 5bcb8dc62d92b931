"""What a store says of an object, and the metadata stored with it, which is read without its content."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from synthia_batch.storage.ledger import ShardEntry, decode_entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Identifies the content that a later write replaces: S3 checks the tag, GCS the number."""

    e_tag: str | None
    number: str | None

    @property
    def condition(self) -> dict[str, str]:
        """The version in obstore's form."""
        pairs = {"e_tag": self.e_tag, "version": self.number}
        return {name: value for name, value in pairs.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object and the metadata stored with it. `content` is empty after `head`."""

    key: str
    size_bytes: int
    version: Version
    metadata: Mapping[str, str]
    content: bytes


_PLAN = "synthia-plan"
_SHA256 = "synthia-sha256"
_SHARD = "synthia-shard"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectMetadata:
    """The run that an object belongs to, and the digest of its content.

    `shard_entry` is the ledger entry of a part's shard. It names the shard's other part, too, so a reader
    can tell whether the shard is complete.
    """

    plan_digest: str
    sha256: str
    shard_entry: ShardEntry | None = None

    def encode(self) -> dict[str, str]:
        """Return the metadata to store with the object: ASCII, and far below S3's limit of 2 KB."""
        metadata = {_PLAN: self.plan_digest, _SHA256: self.sha256}
        if self.shard_entry is not None:
            metadata[_SHARD] = json.dumps(asdict(self.shard_entry), separators=(",", ":"))
        return metadata

    def describes(self, other: "ObjectMetadata | None") -> bool:
        """Return whether `other` describes the same content; the epoch does not matter."""
        if other is None or (self.plan_digest, self.sha256) != (other.plan_digest, other.sha256):
            return False
        mine, others = self.shard_entry, other.shard_entry
        if mine is None or others is None:
            return mine is others
        return (mine.shard, mine.data, mine.failed) == (others.shard, others.data, others.failed)


def describe_object(
    content: bytes, plan_digest: str, shard_entry: ShardEntry | None = None
) -> ObjectMetadata:
    """Return the metadata to store with `content`."""
    return ObjectMetadata(
        plan_digest=plan_digest, sha256=hashlib.sha256(content).hexdigest(), shard_entry=shard_entry
    )


def read_metadata(found: StoredObject) -> ObjectMetadata | None:
    """Return the metadata of an object, or None if it has none: then no run wrote it."""
    metadata = found.metadata
    try:
        shard = metadata.get(_SHARD)
        return ObjectMetadata(
            plan_digest=metadata[_PLAN],
            sha256=metadata[_SHA256],
            shard_entry=None if shard is None else decode_entry(json.loads(shard)),
        )
    except (KeyError, TypeError, ValueError):
        return None
