"""The metadata of an object: stored with it, and read without its content."""

import hashlib
import json
from dataclasses import asdict, dataclass

from synthia_batch.storage.ledger import ShardEntry, decode_entry
from synthia_batch.storage.remote.object_store import StoredObject

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
