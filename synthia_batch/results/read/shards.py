"""The ended samples of each shard, from its published parts or its journal. Only reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def list_samples(facts: RunFacts) -> "list[ShardSamples]":
    """Return the shards of a run with ended samples, in order: a snapshot if the run is active."""
    latest = _read_latest(facts)
    found: dict[int, ShardSamples] = {}
    for shard in facts.shards:
        # The journal comes first: a retry reopens a published shard, and its journal is then newer.
        outcomes = replay(facts.run_dir.journal(shard), shard, facts.writer)
        if outcomes:
            found[shard.number] = _split_outcomes(facts, shard, outcomes)
        elif shard.number in latest:
            found[shard.number] = PublishedSamples(facts=facts, shard=shard, shard_entry=latest[shard.number])
    if len(found) < len(facts.shards):
        # A missing journal may have been published after the ledger was read.
        for number, shard_entry in _read_latest(facts).items():
            published = PublishedSamples(facts=facts, shard=facts.shards[number], shard_entry=shard_entry)
            found.setdefault(number, published)
    return [samples for _, samples in sorted(found.items())]


def _read_latest(facts: RunFacts) -> Mapping[int, ShardEntry]:
    return read_ledger(facts.run_dir.ledger, facts.writer.plan_digest).latest


def _split_outcomes(facts: RunFacts, shard: Shard, outcomes: Mapping[int, Outcome]) -> "JournaledSamples":
    ordered = [outcome for _, outcome in sorted(outcomes.items())]
    finished = [one for one in ordered if isinstance(one, Finished)]
    failed = [one for one in ordered if isinstance(one, Failed)]
    return JournaledSamples(facts=facts, shard=shard, finished=finished, failed=failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSamples:
    """The ended samples of a published shard.

    A position counts its finished, or its failed, samples from 0. `read_numbers` and `read_codes` return
    None if it has no such samples.
    """

    facts: RunFacts
    shard: Shard
    shard_entry: ShardEntry

    @property
    def place(self) -> str:
        """The file of its finished samples, relative to the run directory."""
        return self.facts.name(self._data)

    @property
    def text_bytes(self) -> int:
        """Approximate bytes to read for all answers."""
        return self.shard_entry.data.bytes if self.shard_entry.data else 0

    def read_numbers(self) -> PartNumbers | None:
        return read_numbers(self._data) if self.shard_entry.data else None

    def read_codes(self) -> PartCodes | None:
        return read_codes(self._failed) if self.shard_entry.failed else None

    def read_answers(self) -> Iterator[list[str]]:
        """Yield the answers of its finished samples, a few hundred at a time."""
        return read_answers(self._data) if self.shard_entry.data else iter(())

    def read_finished(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return finished samples, in ascending order, as rows of data/."""
        return [*read_rows(self._data, positions, DATA_NAMES)]

    def read_failed(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return failed samples, in ascending order, as rows of failed/."""
        return [*read_rows(self._failed, positions, FAILED_NAMES)]

    @property
    def _data(self) -> Path:
        return self.facts.run_dir.data_part(self.shard)

    @property
    def _failed(self) -> Path:
        return self.facts.run_dir.failed_part(self.shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournaledSamples:
    """The ended samples of an unfinished shard. A journal holds no prompts: unknown values are None."""

    facts: RunFacts
    shard: Shard
    finished: Sequence[Finished]
    failed: Sequence[Failed]

    @property
    def place(self) -> str:
        return self.facts.name(self.facts.run_dir.journal(self.shard))

    @property
    def text_bytes(self) -> int:
        return 0  # in memory

    def read_numbers(self) -> PartNumbers | None:
        if not self.finished:
            return None
        positions = [self._locate(one.ordinal) for one in self.finished]
        systems, reasons = (
            self.facts.grid.systems,
            tuple(sorted({one.finish_reason for one in self.finished})),
        )
        return PartNumbers(
            row=_to_array(one["row_index"] for one in positions),
            index=_to_array(one["sample_index"] for one in positions),
            system=_to_array(systems.index(one["system"]) for one in positions),
            reason=_to_array(reasons.index(one.finish_reason) for one in self.finished),
            prompt_tokens=_to_array(one.prompt_tokens for one in self.finished),
            completion_tokens=_to_array(one.completion_tokens for one in self.finished),
            systems=systems,
            reasons=reasons,
        )

    def read_codes(self) -> PartCodes | None:
        codes = tuple(sorted({one.code for one in self.failed}))
        code = _to_array(codes.index(one.code) for one in self.failed)
        return PartCodes(code=code, codes=codes) if codes else None

    def read_answers(self) -> Iterator[list[str]]:
        for first in range(0, len(self.finished), TEXT_BATCH_ROWS):
            yield [one.response for one in self.finished[first : first + TEXT_BATCH_ROWS]]

    def read_finished(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        chosen = [self.finished[at] for at in sorted(set(positions))]
        return [
            {
                **dict.fromkeys(DATA_NAMES),
                **self._locate(one.ordinal),
                **{name: getattr(one, name) for name in RESULT_NAMES},
            }
            for one in chosen
        ]

    def read_failed(self, positions: Sequence[int]) -> list[Mapping[str, Any]]:
        chosen = [self.failed[at] for at in sorted(set(positions))]
        return [
            {
                **dict.fromkeys(FAILED_NAMES),
                **self._locate(one.ordinal),
                "code": one.code,
                "message": one.message,
            }
            for one in chosen
        ]

    def _locate(self, ordinal: int) -> dict[str, Any]:
        grid = self.facts.grid
        row, offset = divmod(ordinal, grid.samples_per_row)
        system, index = divmod(offset, grid.num_samples)
        return {"id": None, "row_index": row, "sample_index": index, "system": grid.systems[system]}


ShardSamples = PublishedSamples | JournaledSamples


def _to_array(values: Iterator[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)
