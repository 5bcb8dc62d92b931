"""The record of a shard's finished samples: one write, and a sample is finished.

A journal is a sequence of frames (see frames.py) of four kinds:

    {"plan": DIGEST, "shard": 7, "epoch": 3, "boot": ID}    a header, written by every opening
    {"finished": ORDINAL, "response": ..., ...}             a sample that was made
    {"failed": ORDINAL, "code": ..., "message": ...}        a sample that cannot be made
    {"synced": N}                                           a mark: bytes 0 to N were on the disk

What a reader makes of a damaged frame depends on whether it can be the work of a crash:

- A process that dies leaves at most one torn frame, the last. A torn tail is dropped and its
  samples are made again.
- A machine that dies may bring back what was not yet synced in any mixture: holes of zeros with
  sound frames behind them. To refuse there would make "run the same command again" fail after
  every power cut, though nothing promised is lost. So from the first damage on everything is
  dropped, if a machine did restart since those bytes were written and no mark proves them synced.
- All other damage is not of our making. It is refused, with its offset.

A mark is written with the append after the sync it tells of, and needs no sync of its own: it
states what was true before it. A header is on the disk before any frame follows it, so the boot
under which a byte was written is known whatever is lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from synthia_batch.errors import JournalCorrupt
from synthia_batch.rows import Failed, Finished, Outcome, Shard
from synthia_batch.store.append_file import AppendFile
from synthia_batch.store.atomic import publish_bytes, storage_errors
from synthia_batch.store.attempt import Attempt
from synthia_batch.store.frames import Frame, encode_frame, scan_frames

SYNC_SECONDS = 1.0
"""At most so much work is lost with the power ..."""
SYNC_SAMPLES = 64
"""... or so many samples, ..."""
SYNC_PAUSE_SECONDS = 0.05
"""... if they take longer than this: fast engines must not turn every append into a wait for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a journal holds. `kept_bytes` is where its sound part ends, and appending goes on.

    `dropped_bytes` is the length of the torn tail after it. `epoch` is that of the last opening,
    None for an empty journal.
    """

    outcomes: dict[int, Outcome]
    kept_bytes: int
    dropped_bytes: int
    epoch: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A part of a journal that was cut out: `length` bytes from `offset`, and what was wrong there."""

    offset: int
    length: int
    reason: str


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
    def open(cls, path: Path, shard: Shard, attempt: Attempt) -> Self:
        """Replay the journal at `path`, cut off a torn tail, and make it ready for more.

        Raises:
            JournalCorrupt: As for read_journal. Nothing was touched.
            StorageFailed: A system call failed.
        """
        replayed = read_journal(path, shard, attempt)
        file = AppendFile.open(path, kept_bytes=replayed.kept_bytes)
        try:
            file.append(_encode_header(shard, attempt))
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

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Finish these samples: one write for all of them.

        Raises:
            StorageFailed: The write failed; which of them are finished, the next replay tells. The
                journal takes nothing more.
            ValueError: An ordinal is not of this shard, or a text holds a lone surrogate. Nothing
                was written.
        """
        frames = [_encode_outcome(outcome, self._shard) for outcome in outcomes]
        if self._marked_bytes < self._file.synced_bytes:
            self._marked_bytes = self._file.synced_bytes
            frames.insert(0, encode_frame({"synced": self._marked_bytes}))
        self._file.append(b"".join(frames))
        self._unsynced_samples += len(outcomes)

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


def replay(path: Path, shard: Shard, attempt: Attempt) -> dict[int, Outcome]:
    """Return the samples of `shard` already finished by earlier attempts, by ordinal.

    Raises:
        JournalCorrupt: As for read_journal.
    """
    return read_journal(path, shard, attempt).outcomes


def read_journal(path: Path, shard: Shard, attempt: Attempt) -> Replayed:
    """Return what the journal at `path` holds, without touching it. No file is an empty journal.

    Raises:
        JournalCorrupt: A frame is damaged that no crash can have damaged, or a sound one is of
            another plan or shard, or contradicts an earlier one.
        StorageFailed: The file cannot be read.
    """
    reader = _Reader(path, shard, attempt)
    kept_bytes = stop = 0
    with storage_errors("read", path):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return Replayed(outcomes={}, kept_bytes=0, dropped_bytes=0, epoch=None)
        with file:
            frames = scan_frames(file)
            for frame in frames:
                stop = frame.stop
                if frame.value is None:
                    behind = [later for later in frames if later.value is not None]
                    reader.excuse_damage(frame, behind)
                    stop = file.tell()
                    break
                reader.take(frame)
                kept_bytes = stop
    return Replayed(
        outcomes=reader.outcomes,
        kept_bytes=kept_bytes,
        dropped_bytes=stop - kept_bytes,
        epoch=reader.epoch,
    )


def repair_journal(path: Path, shard: Shard, attempt: Attempt) -> tuple[Damage, ...]:
    """Write the journal anew from its sound frames, and return what was cut out of it.

    Only what is damaged, of another shard or plan, or contradicts an earlier frame is cut out;
    those samples are made again. Call it under the run's lock.

    Raises:
        StorageFailed: The file cannot be read or written. The old one is then still there.
    """
    reader = _Reader(path, shard, attempt)
    reader.epoch = attempt.epoch  # the header that is written below speaks for every frame after it
    damages = tuple(_list_damages(reader))
    write_journal(path, shard, attempt, reader.outcomes.values())
    return damages


def find_damages(path: Path, shard: Shard, attempt: Attempt) -> tuple[Damage, ...]:
    """Return what repair_journal would cut out of the journal. Touches nothing.

    Only for a journal that read_journal refuses: what a crash may leave is listed here as well.

    Raises:
        StorageFailed: The file cannot be read.
    """
    reader = _Reader(path, shard, attempt)
    reader.epoch = attempt.epoch
    return tuple(_list_damages(reader))


def find_last_epoch(path: Path) -> int | None:
    """Return the epoch of the last sound header, or None where there is none.

    Raises:
        StorageFailed: The file cannot be read.
    """
    epoch = None
    with storage_errors("read", path), path.open("rb") as file:
        for frame in scan_frames(file):
            if frame.value is not None and isinstance(frame.value.get("epoch"), int):
                epoch = frame.value["epoch"]
    return epoch


def write_journal(path: Path, shard: Shard, attempt: Attempt, outcomes: Iterable[Outcome]) -> None:
    """Put a journal of exactly these samples at `path`: durably, the old one or the whole new one.

    This is how a published shard is opened again, with the samples that are to be kept: a journal
    of an epoch after the publication goes before the parts. Call it under the run's lock.

    Raises:
        StorageFailed: It could not be written.
        ValueError: As for Journal.append.
    """
    frames = (_encode_outcome(outcome, shard) for outcome in outcomes)
    publish_bytes(path, b"".join((_encode_header(shard, attempt), *frames)))


@dataclass(slots=True)
class _Reader:
    """What the frames of one journal, taken in order, come to."""

    path: Path
    shard: Shard
    attempt: Attempt
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    epoch: int | None = None
    boot: str | None = None

    def take(self, frame: Frame) -> None:
        """Take in a sound frame.

        Raises:
            JournalCorrupt: It has no place in this journal.
        """
        value = frame.value or {}
        try:
            if "finished" in value or "failed" in value:
                self._take_outcome(frame, _decode_outcome(value))
            elif "synced" not in value:  # a mark matters only behind damage
                self._take_header(frame, value)
        except (KeyError, TypeError) as exc:
            raise self.refuse(frame, "the frame is of no kind that this version writes") from exc

    def excuse_damage(self, damaged: Frame, behind: Sequence[Frame]) -> None:
        """Return if a crash can have left `damaged`, with the sound frames `behind` it.

        Raises:
            JournalCorrupt: It was sound once, and no crash can have changed it.
        """
        if not behind:
            return
        if self.epoch is None:
            # Nothing follows the first header before it is on the disk.
            raise self.refuse(damaged, "the frame fails its checksum, and it was synced")
        values = [frame.value or {} for frame in behind]
        synced_bytes = max(value.get("synced", 0) for value in values)
        if damaged.offset < synced_bytes:
            raise self.refuse(damaged, f"the frame fails its checksum, and {synced_bytes} bytes were synced")
        boots = {self.boot, *(value["boot"] for value in values if "boot" in value)}
        if boots == {self.attempt.boot} and None not in boots:
            raise self.refuse(damaged, "the frame fails its checksum, and no machine restarted since")

    def refuse(self, frame: Frame, reason: str) -> JournalCorrupt:
        """Return the error that names this frame."""
        return JournalCorrupt(
            f"{self.path}: byte {frame.offset}: {reason}\n"
            "  `synthia-batch verify DIR --repair` drops exactly the damaged frames; then run again",
            reason=reason,
            offset=frame.offset,
        )

    def _take_header(self, frame: Frame, value: dict[str, Any]) -> None:
        if value["plan"] != self.attempt.plan_digest:
            raise self.refuse(frame, f"the header names another plan, {value['plan']}")
        if value["shard"] != self.shard.number:
            raise self.refuse(frame, f"the header names another shard, {value['shard']}")
        self.epoch, self.boot = value["epoch"], value["boot"]

    def _take_outcome(self, frame: Frame, outcome: Outcome) -> None:
        ordinal = outcome.ordinal
        if self.epoch is None:
            raise self.refuse(frame, "the journal does not begin with a header")
        if not self.shard.first <= ordinal < self.shard.stop:
            raise self.refuse(frame, f"sample {ordinal} is not of shard {self.shard.number}")
        known = self.outcomes.setdefault(ordinal, outcome)
        if known is not outcome and known != outcome:
            raise self.refuse(frame, f"sample {ordinal} was finished before, with another content")


def _list_damages(reader: _Reader) -> Iterator[Damage]:
    with storage_errors("read", reader.path), reader.path.open("rb") as file:
        for frame in scan_frames(file):
            try:
                if frame.value is None:
                    raise reader.refuse(frame, "the frame fails its checksum")
                reader.take(frame)
            except JournalCorrupt as exc:
                yield Damage(offset=frame.offset, length=frame.stop - frame.offset, reason=exc.reason)


def _encode_header(shard: Shard, attempt: Attempt) -> bytes:
    return encode_frame(
        {
            "plan": attempt.plan_digest,
            "shard": shard.number,
            "epoch": attempt.epoch,
            "boot": attempt.boot,
        }
    )


def _encode_outcome(outcome: Outcome, shard: Shard) -> bytes:
    ordinal = outcome.ordinal
    if not shard.first <= ordinal < shard.stop:
        raise ValueError(f"sample {ordinal} is not of shard {shard.number}")
    if isinstance(outcome, Failed):
        return encode_frame({"failed": ordinal, "code": outcome.code, "message": outcome.message})
    return encode_frame(
        {
            "finished": ordinal,
            "response": outcome.response,
            "reasoning": outcome.reasoning,
            "finish_reason": outcome.finish_reason,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
        }
    )


def _decode_outcome(value: dict[str, Any]) -> Outcome:
    if "failed" in value:
        return Failed(ordinal=value["failed"], code=value["code"], message=value["message"])
    return Finished(
        ordinal=value["finished"],
        response=value["response"],
        reasoning=value["reasoning"],
        finish_reason=value["finish_reason"],
        prompt_tokens=value["prompt_tokens"],
        completion_tokens=value["completion_tokens"],
    )
