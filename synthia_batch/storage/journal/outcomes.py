"""The ended samples of a journal: in memory while they are few, else read from the file again."""

import os
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from synthia_batch.core.errors import IntegrityError
from synthia_batch.core.types import Failed, Finished, Message, Outcome, Turn
from synthia_batch.storage.journal.frames import Frame, decode_line
from synthia_batch.storage.journal.logprobs import decode_logprobs_json

MEMORY_BYTES = 20 << 20
"""Bytes of frames whose outcomes stay in memory: 4,000 samples of 1,000 tokens are about 20 MB."""


class JournaledOutcomes(Mapping[int, Outcome]):
    """Outcomes by ordinal, in the order of the journal `file`.

    Those beyond MEMORY_BYTES are read from it again. They stay readable when the file is removed: it is
    only ever appended to, or replaced by another.
    """

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = file
        self._fd = -1
        self._memory_bytes = 0
        self._known: dict[int, Outcome | tuple[int, int]] = {}

    def add(self, frame: Frame, outcome: Outcome) -> None:
        size_bytes = frame.stop - frame.offset
        self._memory_bytes += size_bytes
        if self._file is None or self._memory_bytes <= MEMORY_BYTES:
            self._known[outcome.ordinal] = outcome
            return
        if self._fd < 0:
            self._fd = os.dup(self._file.fileno())
            weakref.finalize(self, os.close, self._fd)
        self._known[outcome.ordinal] = (frame.offset, size_bytes)

    def __getitem__(self, ordinal: int) -> Outcome:
        known = self._known[ordinal]
        return self._read(*known) if isinstance(known, tuple) else known

    def __contains__(self, ordinal: object) -> bool:
        return ordinal in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _read(self, offset: int, size_bytes: int) -> Outcome:
        value = decode_line(os.pread(self._fd, size_bytes, offset))
        if value is None:
            raise IntegrityError(f"a journal was altered at byte {offset} while it was in use; run again")
        return decode_outcome(value)


def decode_outcome(value: Mapping[str, Any]) -> Outcome:
    """Return the ended sample of a frame. Raises KeyError or TypeError if it has none."""
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
        logprobs=decode_logprobs_json(value["logprobs"]) if "logprobs" in value else None,
        called=Message.from_dict(value["called"]) if "called" in value else None,
        candidates=value.get("candidates"),
    )


def decode_turn(value: Mapping[str, Any]) -> Turn:
    """Return the turn of a frame. Raises KeyError or TypeError if it has none."""
    return Turn(
        ordinal=value["of"],
        number=value["turn"],
        response=value["response"],
        finish_reason=value["finish_reason"],
        prompt_tokens=value["prompt_tokens"],
        completion_tokens=value["completion_tokens"],
        is_candidate=value.get("is_candidate", False),
    )
