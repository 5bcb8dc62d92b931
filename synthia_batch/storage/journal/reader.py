"""A journal read back: which samples are finished, and whether damage can be the work of a crash.

See journal.py for the frames and for what a reader makes of a damaged one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthia_batch.core.types import Failed, Finished, Outcome, Record, Shard, Turn
from synthia_batch.errors import JournalCorrupt
from synthia_batch.storage.atomic import storage_errors
from synthia_batch.storage.journal.append_file import DOUBT
from synthia_batch.storage.journal.frames import Frame, scan_frames
from synthia_batch.storage.journal.logprobs import read_logprobs
from synthia_batch.storage.lock import WriterEpoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a journal holds. `kept_bytes` is where its sound part ends, and appending goes on.

    `turns` are those of the conversations that have begun and not ended, by ordinal, in order.
    `dropped_bytes` is the length of the torn tail after it. `epoch` is that of the last opening,
    None for an empty journal. `is_doubtful`: a sync of it failed, so that what is read of it may not
    be on the disk.
    """

    outcomes: dict[int, Outcome]
    turns: Mapping[int, Sequence[Turn]]
    kept_bytes: int
    dropped_bytes: int
    epoch: int | None
    is_doubtful: bool

    @property
    def records(self) -> Iterator[Record]:
        """All that a journal of the same content has to hold."""
        return _list_records(self.outcomes, self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A part of a journal that was cut out: `length` bytes from `offset`, and what was wrong there."""

    offset: int
    length: int
    reason: str


def replay(path: Path, shard: Shard, writer: WriterEpoch) -> dict[int, Outcome]:
    """Return the samples of `shard` already finished by earlier attempts, by ordinal.

    Raises:
        JournalCorrupt: As for read_journal.
    """
    return read_journal(path, shard, writer).outcomes


def read_journal(path: Path, shard: Shard, writer: WriterEpoch) -> Replayed:
    """Return what the journal at `path` holds, without touching it. No file is an empty journal.

    Raises:
        JournalCorrupt: A frame is damaged that no crash can have damaged, or a sound one is of
            another plan or shard, or contradicts an earlier one.
        StorageFailed: The file cannot be read.
    """
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
        turns=reader.turns,
        kept_bytes=kept_bytes,
        dropped_bytes=stop - kept_bytes,
        epoch=reader.epoch,
        is_doubtful=reader.is_doubtful,
    )


def find_damages(path: Path, shard: Shard, writer: WriterEpoch) -> tuple[Damage, ...]:
    """Return what repair_journal would cut out of the journal. Touches nothing.

    Only for a journal that read_journal refuses: what a crash may leave is listed here as well.

    Raises:
        StorageFailed: The file cannot be read.
    """
    reader = JournalReader(path, shard, writer)
    reader.epoch = writer.epoch
    return tuple(list_damages(reader))


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


def list_damages(reader: "JournalReader") -> Iterator[Damage]:
    """Yield what is damaged of the reader's journal or has no place there; the reader takes the rest.

    Raises:
        StorageFailed: The file cannot be read.
    """
    with storage_errors("read", reader.path), reader.path.open("rb") as file:
        for frame in scan_frames(file):
            try:
                if frame.value is None:
                    raise reader.refuse(frame, "the frame fails its checksum")
                reader.take(frame)
            except JournalCorrupt as exc:
                yield Damage(offset=frame.offset, length=frame.stop - frame.offset, reason=exc.reason)


@dataclass(slots=True)
class JournalReader:
    """What the frames of one journal, taken in order, come to."""

    path: Path
    shard: Shard
    writer: WriterEpoch
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    turns: dict[int, list[Turn]] = field(default_factory=dict)
    epoch: int | None = None
    boot: str | None = None
    is_doubtful: bool = False

    @property
    def records(self) -> Iterator[Record]:
        """All that a journal of the same content has to hold."""
        return _list_records(self.outcomes, self.turns)

    def take(self, frame: Frame) -> None:
        """Take in a sound frame.

        Raises:
            JournalCorrupt: It has no place in this journal.
        """
        value = frame.value or {}
        try:
            if "finished" in value or "failed" in value:
                self._take_outcome(frame, _decode_outcome(value))
            elif "turn" in value:
                self._take_turn(frame, _decode_turn(value))
            elif DOUBT in value:
                self.is_doubtful = True
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
        values = [frame.value or {} for frame in behind]
        synced_bytes = max(value.get("synced", 0) for value in values)
        if damaged.offset < synced_bytes:
            raise self.refuse(damaged, f"the frame fails its checksum, and {synced_bytes} bytes were synced")
        doubts = [value[DOUBT] for value in values if DOUBT in value]
        if doubts and damaged.offset >= min(doubts):
            self.is_doubtful = True
            return
        if self.epoch is None:
            # Nothing follows the first header before it is on the disk.
            raise self.refuse(damaged, "the frame fails its checksum, and it was synced")
        boots = {self.boot, *(value["boot"] for value in values if "boot" in value)}
        if boots == {self.writer.boot} and None not in boots:
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
        if value["plan"] != self.writer.plan_digest:
            raise self.refuse(frame, f"the header names another plan, {value['plan']}")
        if value["shard"] != self.shard.number:
            raise self.refuse(frame, f"the header names another shard, {value['shard']}")
        self.epoch, self.boot = value["epoch"], value["boot"]

    def _take_outcome(self, frame: Frame, outcome: Outcome) -> None:
        ordinal = outcome.ordinal
        self._check_place(frame, ordinal)
        turns = self.turns.get(ordinal, [])
        # Only a server knows that a later prompt is too long: where that stops a conversation, its last
        # answer was journaled as a turn before.
        answers = (*outcome.earlier, outcome.response) if isinstance(outcome, Finished) else outcome.earlier
        if tuple(turn.response for turn in turns) != answers[: len(turns)]:
            raise self.refuse(frame, f"sample {ordinal} ends a conversation of other turns than went before")
        known = self.outcomes.setdefault(ordinal, outcome)
        if known is not outcome and known != outcome:
            raise self.refuse(
                frame,
                f"sample {ordinal} was finished before, with another content: made twice by an engine that "
                "is not deterministic",
            )
        self.turns.pop(ordinal, None)

    def _take_turn(self, frame: Frame, turn: Turn) -> None:
        ordinal, number = turn.ordinal, turn.number
        self._check_place(frame, ordinal)
        if ordinal in self.outcomes:
            raise self.refuse(frame, f"turn {number} of sample {ordinal} comes after its end")
        known = self.turns.get(ordinal, [])
        if not 0 <= number <= len(known):
            raise self.refuse(frame, f"turn {number} of sample {ordinal} comes where {len(known)} must be")
        if number == len(known):
            self.turns.setdefault(ordinal, []).append(turn)
        elif known[number] != turn:
            raise self.refuse(
                frame, f"turn {number} of sample {ordinal} was finished before, with another content"
            )

    def _check_place(self, frame: Frame, ordinal: int) -> None:
        if self.epoch is None:
            raise self.refuse(frame, "the journal does not begin with a header")
        if not self.shard.first <= ordinal < self.shard.stop:
            raise self.refuse(frame, f"sample {ordinal} is not of shard {self.shard.number}")


def _list_records(outcomes: Mapping[int, Outcome], turns: Mapping[int, Sequence[Turn]]) -> Iterator[Record]:
    yield from outcomes.values()
    for conversation in turns.values():
        yield from conversation


def _decode_outcome(value: dict[str, Any]) -> Outcome:
    earlier = tuple(value.get("earlier", ()))
    if "failed" in value:
        return Failed(ordinal=value["failed"], code=value["code"], message=value["message"], earlier=earlier)
    return Finished(
        ordinal=value["finished"],
        response=value["response"],
        reasoning=value["reasoning"],
        finish_reason=value["finish_reason"],
        prompt_tokens=value["prompt_tokens"],
        completion_tokens=value["completion_tokens"],
        earlier=earlier,
        logprobs=read_logprobs(value["logprobs"]) if "logprobs" in value else None,
    )


def _decode_turn(value: dict[str, Any]) -> Turn:
    return Turn(
        ordinal=value["of"],
        number=value["turn"],
        response=value["response"],
        finish_reason=value["finish_reason"],
        prompt_tokens=value["prompt_tokens"],
        completion_tokens=value["completion_tokens"],
    )
