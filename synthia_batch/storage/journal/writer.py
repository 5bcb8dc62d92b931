"""Records a shard's finished samples: a sample is finished with one write.

A journal is a sequence of frames (see frames.py) of six kinds:

    {"plan": DIGEST, "shard": 7, "epoch": 3, "boot": ID}    a header, written at every opening
    {"finished": ORDINAL, "response": ..., ...}             a finished sample
    {"failed": ORDINAL, "code": ..., "message": ...}        a failed sample
    {"turn": 6, "of": ORDINAL, "response": ..., ...}        a turn of an unfinished conversation
    {"synced": N}                                           a mark: bytes 0 to N were on disk
    {"unsynced": N}                                         the last, after a newline, if a sync failed

The treatment of a damaged frame depends on whether a crash can explain it:

- A process crash leaves at most one torn frame, the last. A torn tail is dropped and its samples are
  regenerated.
- After a machine crash any mixture of unsynced bytes may be there: holes of zeros followed by valid frames.
  Refusing that would make "run the same command again" fail after every power loss, although nothing
  promised is lost. So everything from the first damage on is dropped, provided that the machine restarted
  since those bytes were written and no mark proves them synced.
- After a failed fsync the kernel may drop the unwritten bytes, at once or later, even while the machine runs.
  Damage in that range is treated as after power loss. The surviving frames are rewritten through pages that
  the kernel knows to be dirty before the journal grows.
- Any other damage has an outside cause. It is refused, with its offset.

The turns of a conversation are numbered from 0 and come in order. They matter until its sample has ended:
that frame holds all of its answers.

A mark is written with the first append after its sync and needs no sync of its own: it states what was
already true. A header is on disk before any frame follows it, so the boot under which a byte was written is
known whatever is lost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from synthia_batch.core.types import Failed, Record, Shard, Turn
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.journal.append_file import AppendFile
from synthia_batch.storage.journal.frames import encode_frame
from synthia_batch.storage.journal.logprobs import encode_logprobs_json
from synthia_batch.storage.journal.reader import (
    Damage,
    JournalReader,
    Replayed,
    list_damage,
    list_records,
    read_journal,
)
from synthia_batch.storage.lock import WriterEpoch

SYNC_SECONDS = 1.0
"""Power loss costs at most this much work, ..."""
SYNC_SAMPLES = 64
"""... or this many samples, ..."""
SYNC_PAUSE_SECONDS = 0.05
"""... with at least this long between syncs: with fast engines, not every append must wait for the disk."""


class Journal:
    """The open journal of one shard. `replayed` is its content when it was opened."""

    def __init__(self, file: AppendFile, shard: Shard, replayed: Replayed) -> None:
        self.replayed = replayed
        self._file = file
        self._shard = shard
        self._marked_bytes = 0
        self._unsynced_samples = 0
        self._unsynced_since: float | None = None

    @classmethod
    def open(cls, path: Path, shard: Shard, writer: WriterEpoch) -> Self:
        """Replay the journal at `path`, cut off a torn tail, and open it for appending.

        Raises:
            JournalCorrupt: As for read_journal. Nothing was changed.
        """
        replayed = read_journal(path, shard, writer)
        if replayed.is_doubtful:
            write_journal(path, shard, writer, list_records(replayed))
            dropped_bytes = replayed.dropped_bytes
            replayed = replace(read_journal(path, shard, writer), dropped_bytes=dropped_bytes)
        file = AppendFile.open(path, kept_bytes=replayed.kept_bytes)
        try:
            file.append(_encode_header(shard, writer))
            # The cut must be on disk before a sample of the tail is regenerated, or power loss could
            # restore both. The header must be on disk before any frame follows it (see above).
            file.sync_with_name()
        except BaseException:
            file.close()
            raise
        return cls(file, shard, replayed)

    @property
    def path(self) -> Path:
        return self._file.path

    def append(self, records: Sequence[Record]) -> None:
        """Record these samples and turns as finished, in one write."""
        frames = [_encode_record(record, self._shard) for record in records]
        if self._marked_bytes < self._file.synced_bytes:
            self._marked_bytes = self._file.synced_bytes
            frames.insert(0, encode_frame({"synced": self._marked_bytes}))
        self._file.append(b"".join(frames))
        self._unsynced_samples += len(records)

    def sync_if_due(self, now_seconds: float) -> bool:
        """Sync if unsynced samples have waited long enough; return whether it did.

        Call it after every append and at least a few times a second. `now_seconds` is from a monotonic
        clock.
        """
        if not self._unsynced_samples:
            return False
        if self._unsynced_since is None:
            self._unsynced_since = now_seconds
        waited = now_seconds - self._unsynced_since
        is_many = self._unsynced_samples >= SYNC_SAMPLES and waited >= SYNC_PAUSE_SECONDS
        if not is_many and waited < SYNC_SECONDS:
            return False
        self.sync()
        return True

    def sync(self) -> None:
        """Return once every appended sample survives power loss."""
        if self._file.synced_bytes < self._file.size_bytes:
            self._file.sync()
        self._unsynced_samples = 0
        self._unsynced_since = None

    def close(self) -> None:
        """Close the file without syncing it. Safe to call twice."""
        self._file.close()


def repair_journal(path: Path, shard: Shard, writer: WriterEpoch) -> tuple[Damage, ...]:
    """Rewrite the journal from its valid frames, and return what was cut out of it.

    A frame is cut out only if it is damaged, of another shard or plan, or contradicts an earlier one; the
    next run regenerates those samples. Call it under the run's lock.
    """
    reader = JournalReader(path, shard, writer)
    reader.epoch = writer.epoch  # the header written below covers every frame after it
    damage = tuple(list_damage(reader))
    write_journal(path, shard, writer, list_records(reader))
    return damage


def write_journal(path: Path, shard: Shard, writer: WriterEpoch, records: Iterable[Record]) -> None:
    """Write a journal of exactly these records to `path`, durably and atomically.

    This reopens a published shard with the samples to keep: a journal whose epoch is after the publication
    overrides the parts. Call it under the run's lock.
    """
    frames = (_encode_record(record, shard) for record in records)
    publish_bytes(path, b"".join((_encode_header(shard, writer), *frames)))


def _encode_header(shard: Shard, writer: WriterEpoch) -> bytes:
    return encode_frame(
        {"plan": writer.plan_digest, "shard": shard.number, "epoch": writer.epoch, "boot": writer.boot}
    )


def _encode_record(record: Record, shard: Shard) -> bytes:
    ordinal = record.ordinal
    if not shard.first <= ordinal < shard.stop:
        raise ValueError(f"sample {ordinal} is not in shard {shard.number}")
    if isinstance(record, Turn):
        return encode_frame(_describe_turn(record))
    earlier = {"earlier": record.earlier} if record.earlier else {}
    if isinstance(record, Failed):
        return encode_frame({"failed": ordinal, "code": record.code, "message": record.message, **earlier})
    return encode_frame(
        {
            "finished": ordinal,
            "response": record.response,
            "reasoning": record.reasoning,
            "finish_reason": record.finish_reason,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            **earlier,
            **({"called": record.called.to_dict()} if record.called is not None else {}),
            **({"candidates": record.candidates} if record.candidates is not None else {}),
            **({"logprobs": encode_logprobs_json(record.logprobs)} if record.logprobs is not None else {}),
        }
    )


def _describe_turn(turn: Turn) -> dict[str, Any]:
    return {
        "turn": turn.number,
        "of": turn.ordinal,
        "response": turn.response,
        "finish_reason": turn.finish_reason,
        "prompt_tokens": turn.prompt_tokens,
        "completion_tokens": turn.completion_tokens,
        **({"is_candidate": True} if turn.is_candidate else {}),
    }
