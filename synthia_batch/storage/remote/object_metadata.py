"""What an object says of itself: written with it, and read without its content."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from synthia_batch.storage.ledger import Intent, PartEntry
from synthia_batch.storage.remote.object_store import StoredObject

_PLAN = "synthia-plan"
_SHA256 = "synthia-sha256"
_SHARD = "synthia-shard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Of which run an object is, and what its content must be.

    `intent` is the ledger's entry of a part's shard: it names the other part, too, so that a shard can be
    told to be there as a whole.
    """

    plan_digest: str
    sha256: str
    intent: Intent | None = None

    def encode(self) -> dict[str, str]:
        """Return the notes as they are put with the object: ASCII, and far below S3's 2 KB."""
        notes = {_PLAN: self.plan_digest, _SHA256: self.sha256}
        if self.intent is not None:
            notes[_SHARD] = json.dumps(asdict(self.intent), separators=(",", ":"))
        return notes

    def describes(self, other: "Notes | None") -> bool:
        """Return whether `other` are the notes of the same content; the epoch does not matter."""
        if other is None or (self.plan_digest, self.sha256) != (other.plan_digest, other.sha256):
            return False
        mine, others = self.intent, other.intent
        if mine is None or others is None:
            return mine is others
        return (mine.shard, mine.data, mine.failed) == (others.shard, others.data, others.failed)


def take_notes(content: bytes, plan_digest: str, intent: Intent | None = None) -> Notes:
    """Return the notes to put with `content`."""
    return Notes(plan_digest=plan_digest, sha256=hashlib.sha256(content).hexdigest(), intent=intent)


def read_notes(found: StoredObject) -> Notes | None:
    """Return the notes of an object, or None where it has none: then no run wrote it."""
    return _decode(found.notes)


def _decode(notes: Mapping[str, str]) -> Notes | None:
    try:
        shard = notes.get(_SHARD)
        return Notes(
            plan_digest=notes[_PLAN],
            sha256=notes[_SHA256],
            intent=None if shard is None else _decode_intent(json.loads(shard)),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _decode_intent(value: dict[str, Any]) -> Intent:
    return Intent(
        shard=int(value["shard"]),
        epoch=int(value["epoch"]),
        data=None if value["data"] is None else PartEntry(**value["data"]),
        failed=None if value["failed"] is None else PartEntry(**value["failed"]),
    )
