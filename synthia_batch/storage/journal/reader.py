"""Reads a journal: which samples are finished, and whether a crash can explain its damage.

writer.py describes the frames and the treatment of damaged ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthia_batch.core.errors import JournalCorrupt
from synthia_batch.core.types import Finished, Outcome, Record, Shard, Turn
from synthia_batch.storage.atomic import storage_errors
from synthia_batch.storage.journal.append_file import UNSYNCED
from synthia_batch.storage.journal.frames import Frame, scan_frames
from synthia_batch.storage.journal.outcomes import JournaledOutcomes, decode_outcome, decode_turn
from synthia_batch.storage.lock import WriterEpoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """The content of a journal. `kept_bytes` is the length of its valid part, where appending resumes.

    `turns` holds those of unfinished conversations, by ordinal, in order. `dropped_bytes` is the length of
    the torn tail. `epoch` is that of the last opening, None for an empty journal. `is_doubtful`: a sync
    failed, so the content may not be on disk.
    """

    outcomes: Mapping[int, Outcome]
    turns: Mapping[int, Sequence[Turn]]
    kept_bytes: int
    dropped_bytes: int
    epoch: int | None
    is_doubtful: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A part of a journal that was cut out: `length` bytes from `offset`, for this `reason`."""

    offset: int
    length: int
    reason: str


def replay(path: Path, shard: Shard, writer: WriterEpoch) -> Mapping[int, Outcome]:
    """Return the outcomes of `shard` recorded by earlier attempts, by ordinal, in bounded memory."""
    return read_journal(path, shard, writer).outcomes


def read_journal(path: Path, shard: Shard, writer: WriterEpoch) -> Replayed:
    """Return the content of the journal at `path`, without changing it. No file is an empty journal."""
    reader = JournalReader(path, shard, writer)
    kept_bytes = stop = 0
    with storage_errors("read", path):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return Replayed(
                outcomes={}, turns={}, kept_bytes=0, dropped_bytes=0, epoch=None, is_doubtful=False
            )
        with file:
            reader.outcomes = JournaledOutcomes(file)
            frames = scan_frames(file)
            for frame in frames:
                stop = frame.stop
                if frame.value is None:
                    later = [other for other in frames if other.value is not None]
                    reader.check_damage(frame, later)
                    stop = file.tell()
                    break
                reader.apply(frame)
                kept_bytes = stop
    return Replayed(
        outcomes=reader.outcomes,
        turns=reader.turns,
        kept_bytes=kept_bytes,
        dropped_bytes=stop - kept_bytes,
        epoch=reader.epoch,
        is_doubtful=reader.is_doubtful,
    )


def find_damage(path: Path, shard: Shard, writer: WriterEpoch) -> tuple[Damage, ...]:
    """Return what repair_journal would cut out of the journal. Changes nothing.

    Only for a journal that read_journal refuses: the traces of a crash are listed here as well.
    """
    reader = JournalReader(path, shard, writer)
    reader.epoch = writer.epoch
    return tuple(list_damage(reader))


def find_last_epoch(path: Path) -> int | None:
    """Return the epoch of the last valid header, or None if there is none."""
    epoch = None
    with storage_errors("read", path), path.open("rb") as file:
        for frame in scan_frames(file):
            if frame.value is not None and isinstance(frame.value.get("epoch"), int):
                epoch = frame.value["epoch"]
    return epoch


def list_damage(reader: "JournalReader") -> Iterator[Damage]:
    """Yield the damaged or misplaced frames of the reader's journal, and apply the rest to the reader."""
    with storage_errors("read", reader.path), reader.path.open("rb") as file:
        for frame in scan_frames(file):
            try:
                if frame.value is None:
                    raise reader.refuse(frame, "the frame fails its checksum")
                reader.apply(frame)
            except JournalCorrupt as exc:
                yield Damage(offset=frame.offset, length=frame.stop - frame.offset, reason=exc.reason)


@dataclass(slots=True)
class JournalReader:
    """Collects the content of one journal from its frames, applied in order."""

    path: Path
    shard: Shard
    writer: WriterEpoch
    outcomes: JournaledOutcomes = field(default_factory=JournaledOutcomes)
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    epoch: int | None = None
    boot: str | None = None
    is_doubtful: bool = False

    def apply(self, frame: Frame) -> None:
        """Add the content of a valid frame. Raises JournalCorrupt if it does not belong in this journal."""
        value = frame.value or {}
        try:
            if "finished" in value or "failed" in value:
                self._apply_outcome(frame, decode_outcome(value))
            elif "turn" in value:
                self._apply_turn(frame, decode_turn(value))
            elif UNSYNCED in value:
                self.is_doubtful = True
            elif "synced" not in value:  # a mark matters only after damage
                self._apply_header(frame, value)
        except (KeyError, TypeError) as exc:
            raise self.refuse(frame, "this version writes no such frame") from exc

    def check_damage(self, damaged: Frame, later: Sequence[Frame]) -> None:
        """Return if a crash can explain `damaged`, given the valid frames `later` in the file.

        Raises:
            JournalCorrupt: No crash can explain it.
        """
        if not later:
            return
        values = [frame.value or {} for frame in later]
        synced_bytes = max(value.get("synced", 0) for value in values)
        if damaged.offset < synced_bytes:
            raise self.refuse(damaged, f"the frame fails its checksum, and {synced_bytes} bytes were synced")
        unsynced = [value[UNSYNCED] for value in values if UNSYNCED in value]
        if unsynced and damaged.offset >= min(unsynced):
            self.is_doubtful = True
            return
        if self.epoch is None:
            # The first header is on disk before any frame follows it.
            raise self.refuse(damaged, "the frame fails its checksum, and it was synced")
        boots = {self.boot, *(value["boot"] for value in values if "boot" in value)}
        if boots == {self.writer.boot} and None not in boots:
            raise self.refuse(damaged, "the frame fails its checksum, and the machine did not restart since")

    def refuse(self, frame: Frame, reason: str) -> JournalCorrupt:
        return JournalCorrupt(
            f"{self.path}: byte {frame.offset}: {reason}\n"
            "  run `synthia-batch verify DIR --repair`: it drops only the damaged frames; then run again",
            reason=reason,
            offset=frame.offset,
        )

    def _apply_header(self, frame: Frame, value: dict[str, Any]) -> None:
        if value["plan"] != self.writer.plan_digest:
            raise self.refuse(frame, f"the header names another plan, {value['plan']}")
        if value["shard"] != self.shard.number:
            raise self.refuse(frame, f"the header names another shard, {value['shard']}")
        self.epoch, self.boot = value["epoch"], value["boot"]

    def _apply_outcome(self, frame: Frame, outcome: Outcome) -> None:
        ordinal = outcome.ordinal
        self._check_shard(frame, ordinal)
        if not _follows(self.turns.get(ordinal, []), outcome):
            raise self.refuse(frame, f"sample {ordinal} ends a conversation whose recorded turns differ")
        if ordinal not in self.outcomes:
            self.outcomes.add(frame, outcome)
        elif self.outcomes[ordinal] != outcome:
            raise self.refuse(
                frame,
                f"sample {ordinal} was already finished with different content: an engine that is not "
                "deterministic generated it twice",
            )
        self.turns.pop(ordinal, None)

    def _apply_turn(self, frame: Frame, turn: Turn) -> None:
        ordinal, number = turn.ordinal, turn.number
        self._check_shard(frame, ordinal)
        where = f"turn {number} of sample {ordinal}"
        if ordinal in self.outcomes:
            raise self.refuse(frame, f"{where} comes after its end")
        known = self.turns.get(ordinal, [])
        if not 0 <= number <= len(known):
            raise self.refuse(frame, f"{where}: expected turn {len(known)}")
        if number == len(known):
            self.turns.setdefault(ordinal, []).append(turn)
        elif known[number] != turn:
            raise self.refuse(frame, f"{where} was already finished with different content")

    def _check_shard(self, frame: Frame, ordinal: int) -> None:
        if self.epoch is None:
            raise self.refuse(frame, "the journal does not begin with a header")
        if not self.shard.first <= ordinal < self.shard.stop:
            raise self.refuse(frame, f"sample {ordinal} is not in shard {self.shard.number}")


def list_records(content: Replayed | JournalReader) -> Iterator[Record]:
    """Yield all records that a journal with this content needs."""
    yield from content.outcomes.values()
    for conversation in content.turns.values():
        yield from conversation


def _follows(turns: Sequence[Turn], outcome: Outcome) -> bool:
    """Return whether a sample with these journaled `turns` can end with `outcome`."""
    if turns and turns[0].is_candidate:
        return not isinstance(outcome, Finished) or outcome.candidates == len(turns) + 1
    # A server may reject a later prompt as too long. The conversation then ends after an answer that was
    # already journaled as a turn.
    answers = (*outcome.earlier, outcome.response) if isinstance(outcome, Finished) else outcome.earlier
    return tuple(turn.response for turn in turns) == answers[: len(turns)]
