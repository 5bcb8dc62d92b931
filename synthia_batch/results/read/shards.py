"""The samples of a run shard by shard, whether they are published or still in a journal. Only reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.types import Failed, Finished, Outcome, Shard
from synthia_batch.results.verify.facts import RunFacts
from synthia_batch.storage.journal.reader import replay
from synthia_batch.storage.ledger import ShardEntry, read_ledger
from synthia_batch.storage.parts.columns import (
    TEXT_BATCH_ROWS,
    PartCodes,
    PartNumbers,
    read_answers,
    read_codes,
    read_numbers,
    read_rows,
)
from synthia_batch.storage.parts.schema import DATA_NAMES, FAILED_NAMES, RESULT_NAMES


class ShardSamples(Protocol):
    """The samples of one shard that have ended. Finished ones are numbered from 0 in their order, and so
    are failed ones.
    """

    @property
    def shard(self) -> Shard:
        """Which shard it is."""

    @property
    def place(self) -> str:
        """Where its finished samples are, for people."""

    @property
    def text_bytes(self) -> int:
        """What reading all answers costs, about."""

    def read_numbers(self) -> PartNumbers | None:
        """Return the numbers of its finished samples, None where there are none."""

    def read_codes(self) -> PartCodes | None:
        """Return why its failed samples failed, None where there are none."""

    def read_answers(self) -> Iterator[list[str]]:
        """Yield the answers of its finished samples, some hundreds at a time."""

    def read_made(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return these finished samples, in rising order, as rows of data/; None where nobody knows."""

    def read_failed(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return these failed samples, in rising order, as rows of failed/; None where nobody knows."""


def list_samples(facts: RunFacts) -> list[ShardSamples]:
    """Return the shards of a run in which samples have ended, in order.

    Of a running one it is a view of this moment: what is published meanwhile is read where it is now.

    Raises:
        IntegrityError: A journal or the ledger is damaged.
    """
    latest = _read_latest(facts)
    found: dict[int, ShardSamples] = {}
    for shard in facts.shards:
        # A journal holds what its shard's parts hold, or newer samples: a retry opens it again.
        outcomes = replay(facts.run_dir.journal(shard), shard, facts.attempt)
        if outcomes:
            found[shard.number] = _take_journaled(facts, shard, outcomes)
        elif shard.number in latest:
            found[shard.number] = PublishedSamples(facts=facts, shard=shard, shard_entry=latest[shard.number])
    if len(found) < len(facts.shards):
        # A journal that was gone may have been published since the ledger was read.
        for number, shard_entry in _read_latest(facts).items():
            published = PublishedSamples(facts=facts, shard=facts.shards[number], shard_entry=shard_entry)
            found.setdefault(number, published)
    return [samples for _, samples in sorted(found.items())]


def _read_latest(facts: RunFacts) -> Mapping[int, ShardEntry]:
    return read_ledger(facts.run_dir.ledger, facts.attempt.plan_digest).latest


def _take_journaled(facts: RunFacts, shard: Shard, outcomes: Mapping[int, Outcome]) -> "JournaledSamples":
    ordered = [outcome for _, outcome in sorted(outcomes.items())]
    made = [one for one in ordered if isinstance(one, Finished)]
    failed = [one for one in ordered if isinstance(one, Failed)]
    return JournaledSamples(facts=facts, shard=shard, made=made, failed=failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSamples:
    """Implements ShardSamples for a shard whose parts are in place."""

    facts: RunFacts
    shard: Shard
    shard_entry: ShardEntry

    @property
    def place(self) -> str:
        """The data part."""
        return self.facts.name(self._data)

    @property
    def text_bytes(self) -> int:
        """The size of the data part."""
        return self.shard_entry.data.bytes if self.shard_entry.data else 0

    def read_numbers(self) -> PartNumbers | None:
        """Read them of the data part."""
        return read_numbers(self._data) if self.shard_entry.data else None

    def read_codes(self) -> PartCodes | None:
        """Read them of the failed part."""
        return read_codes(self._failed) if self.shard_entry.failed else None

    def read_answers(self) -> Iterator[list[str]]:
        """Read them of the data part."""
        return read_answers(self._data) if self.shard_entry.data else iter(())

    def read_made(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Read them of the data part."""
        return [*read_rows(self._data, positions, DATA_NAMES)]

    def read_failed(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Read them of the failed part."""
        return [*read_rows(self._failed, positions, FAILED_NAMES)]

    @property
    def _data(self) -> Path:
        return self.facts.run_dir.data_part(self.shard)

    @property
    def _failed(self) -> Path:
        return self.facts.run_dir.failed_part(self.shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledSamples:
    """Implements ShardSamples for a shard that is not full yet. A journal knows no prompts."""

    facts: RunFacts
    shard: Shard
    made: Sequence[Finished]
    failed: Sequence[Failed]

    @property
    def place(self) -> str:
        """The journal."""
        return self.facts.name(self.facts.run_dir.journal(self.shard))

    @property
    def text_bytes(self) -> int:
        """None: it is in memory."""
        return 0

    def read_numbers(self) -> PartNumbers | None:
        """Return them from memory."""
        if not self.made:
            return None
        places = [self._place(one.ordinal) for one in self.made]
        systems, reasons = self.facts.grid.systems, tuple(sorted({one.finish_reason for one in self.made}))
        return PartNumbers(
            row=_to_array(place["row_index"] for place in places),
            index=_to_array(place["sample_index"] for place in places),
            system=_to_array(systems.index(place["system"]) for place in places),
            reason=_to_array(reasons.index(one.finish_reason) for one in self.made),
            prompt_tokens=_to_array(one.prompt_tokens for one in self.made),
            completion_tokens=_to_array(one.completion_tokens for one in self.made),
            systems=systems,
            reasons=reasons,
        )

    def read_codes(self) -> PartCodes | None:
        """Return them from memory."""
        codes = tuple(sorted({one.code for one in self.failed}))
        code = _to_array(codes.index(one.code) for one in self.failed)
        return PartCodes(code=code, codes=codes) if codes else None

    def read_answers(self) -> Iterator[list[str]]:
        """Return them from memory."""
        for first in range(0, len(self.made), TEXT_BATCH_ROWS):
            yield [one.response for one in self.made[first : first + TEXT_BATCH_ROWS]]

    def read_made(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return them from memory."""
        chosen = [self.made[at] for at in sorted(set(positions))]
        return [
            {
                **dict.fromkeys(DATA_NAMES),
                **self._place(one.ordinal),
                **{name: getattr(one, name) for name in RESULT_NAMES},
            }
            for one in chosen
        ]

    def read_failed(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return them from memory."""
        chosen = [self.failed[at] for at in sorted(set(positions))]
        return [
            {
                **dict.fromkeys(FAILED_NAMES),
                **self._place(one.ordinal),
                "code": one.code,
                "message": one.message,
            }
            for one in chosen
        ]

    def _place(self, ordinal: int) -> dict[str, Any]:
        grid = self.facts.grid
        row, offset = divmod(ordinal, grid.samples_per_row)
        system, index = divmod(offset, grid.num_samples)
        return {"id": None, "row_index": row, "sample_index": index, "system": grid.systems[system]}


def _to_array(values: Iterator[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)
