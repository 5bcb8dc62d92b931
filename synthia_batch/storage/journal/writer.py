"""The record of a shard's finished samples: one write, and a sample is finished.

A journal is a sequence of frames (see frames.py) of six kinds:

    {"plan": DIGEST, "shard": 7, "epoch": 3, "boot": ID}    a header, written by every opening
    {"finished": ORDINAL, "response": ..., ...}             a sample that was made
    {"failed": ORDINAL, "code": ..., "message": ...}        a sample that cannot be made
    {"turn": 6, "of": ORDINAL, "response": ..., ...}        a turn of a conversation that goes on
    {"synced": N}                                           a mark: bytes 0 to N were on the disk
    {"unsynced": N}                                         the last word of a writer whose sync failed

What a reader makes of a damaged frame depends on whether it can be the work of a crash:

- A process that dies leaves at most one torn frame, the last. A torn tail is dropped and its
  samples are made again.
- A machine that dies may bring back what was not yet synced in any mixture: holes of zeros with
  sound frames behind them. To refuse there would make "run the same command again" fail after
  every power cut, though nothing promised is lost. So from the first damage on everything is
  dropped, if a machine did restart since those bytes were written and no mark proves them synced.
- A kernel whose fsync failed may drop what it could not write, at once or later, also with the
  machine running. What such a sync was for is judged as after a power cut; what is still there is
  written anew, through pages that the kernel knows to be dirty, before the journal grows.
- All other damage is not of our making. It is refused, with its offset.

The turns of a conversation are numbered from 0 and come in order. They matter until its sample has
ended: that frame holds all of its answers.

A mark is written with the append after the sync it tells of, and needs no sync of its own: it
states what was true before it. A header is on the disk before any frame follows it, so the boot
under which a byte was written is known whatever is lost.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from synthia_batch.core.types import Failed, Record, Shard, Turn
from synthia_batch.storage.atomic import publish_bytes
from synthia_batch.storage.journal.append_file import AppendFile
from synthia_batch.storage.journal.frames import encode_frame
from synthia_batch.storage.journal.logprobs import spell_logprobs
from synthia_batch.storage.journal.reader import Damage, JournalReader, Replayed, list_damages, read_journal
from synthia_batch.storage.lock import WriterEpoch

SYNC_SECONDS = 1.0
"""At most so much work is lost with the power ..."""
SYNC_SAMPLES = 64
"""... or so many samples, ..."""
SYNC_PAUSE_SECONDS = 0.05
"""... if they take longer than this: fast engines must not turn every append into a wait for the disk."""


class Journal:
    """The open journal of one shard. `replayed` is what it held when it was opened."""

    def __init__(self, file: AppendFile, shard: Shard, replayed: Replayed) -> None:
        self.replayed = replayed
        self._file = file
        self._shard = shard
        self._marked_bytes = 0
        self._unsynced_samples = 0
        self._unsynced_since: float | None = None

    @classmethod
    def open(cls, path: Path, shard: Shard, writer: WriterEpoch) -> Self:
        """Replay the journal at `path`, cut off a torn tail, and make it ready for more.

        Raises:
            JournalCorrupt: As for read_journal. Nothing was touched.
            StorageFailed: A system call failed.
        """
        replayed = read_journal(path, shard, writer)
        if replayed.is_doubtful:
            write_journal(path, shard, writer, replayed.records)
            dropped_bytes = replayed.dropped_bytes
            replayed = replace(read_journal(path, shard, writer), dropped_bytes=dropped_bytes)
        file = AppendFile.open(path, kept_bytes=replayed.kept_bytes)
        try:
            file.append(_encode_header(shard, writer))
            # The cut must be on the disk before a sample of the tail is made again, or power loss
            # could bring back both. The header must be before any frame follows it (see above).
            file.sync_with_name()
        except BaseException:
            file.close()
            raise
        return cls(file, shard, replayed)

    @property
    def path(self) -> Path:
        """Where the journal is."""
        return self._file.path

    def append(self, records: Sequence[Record]) -> None:
        """Finish these samples and turns: one write for all of them.

        Raises:
            StorageFailed: The write failed; which of them are finished, the next replay tells. The
                journal takes nothing more.
            ValueError: An ordinal is not of this shard, or a text holds a lone surrogate. Nothing
                was written.
        """
        frames = [_encode_record(record, self._shard) for record in records]
        if self._marked_bytes < self._file.synced_bytes:
            self._marked_bytes = self._file.synced_bytes
            frames.insert(0, encode_frame({"synced": self._marked_bytes}))
        self._file.append(b"".join(frames))
        self._unsynced_samples += len(records)

    def sync_if_due(self, now_seconds: float) -> bool:
        """Sync if unsynced samples have waited long enough; return whether it did.

        Call it after every append and at least a few times a second. `now_seconds` is of any clock
        that does not go back.

        Raises:
            StorageFailed: As for sync.
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
        """Return once every sample that was appended survives power loss.

        Raises:
            StorageFailed: It may not; the journal takes nothing more.
        """
        if self._file.synced_bytes < self._file.size_bytes:
            self._file.sync()
        self._unsynced_samples = 0
        self._unsynced_since = None

    def close(self) -> None:
        """Let go of the file without syncing it. Safe to call twice."""
        self._file.close()


def repair_journal(path: Path, shard: Shard, writer: WriterEpoch) -> tuple[Damage, ...]:
    """Write the journal anew from its sound frames, and return what was cut out of it.

    Only what is damaged, of another shard or plan, or contradicts an earlier frame is cut out;
    those samples are made again. Call it under the run's lock.

    Raises:
        StorageFailed: The file cannot be read or written. The old one is then still there.
    """
    reader = JournalReader(path, shard, writer)
    reader.epoch = writer.epoch  # the header that is written below speaks for every frame after it
    damages = tuple(list_damages(reader))
    write_journal(path, shard, writer, reader.records)
    return damages


def write_journal(path: Path, shard: Shard, writer: WriterEpoch, records: Iterable[Record]) -> None:
    """Put a journal of exactly these records at `path`: durably, the old one or the whole new one.

    This is how a published shard is opened again, with the samples that are to be kept: a journal
    of an epoch after the publication goes before the parts. Call it under the run's lock.

    Raises:
        StorageFailed: It could not be written.
        ValueError: As for Journal.append.
    """
    frames = (_encode_record(record, shard) for record in records)
    publish_bytes(path, b"".join((_encode_header(shard, writer), *frames)))


def _encode_header(shard: Shard, writer: WriterEpoch) -> bytes:
    return encode_frame(
        {
            "plan": writer.plan_digest,
            "shard": shard.number,
            "epoch": writer.epoch,
            "boot": writer.boot,
        }
    )


def _encode_record(record: Record, shard: Shard) -> bytes:
    ordinal = record.ordinal
    if not shard.first <= ordinal < shard.stop:
        raise ValueError(f"sample {ordinal} is not of shard {shard.number}")
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
            **({"logprobs": spell_logprobs(record.logprobs)} if record.logprobs is not None else {}),
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
    }
