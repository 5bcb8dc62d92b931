"""From the rows and outcomes of a shard to its files."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from synthia_batch.core.counts import Tally, tally_records
from synthia_batch.core.types import Finished, Outcome, Row, Sample, Shard
from synthia_batch.inputs import Scan, Source
from synthia_batch.job.plan import expand_row
from synthia_batch.job.resolved import PlanSpec
from synthia_batch.results.quality.flags import Flagger
from synthia_batch.storage.parts.schema import DataRecord, FailedRecord, PartFormat
from synthia_batch.storage.parts.writer import open_data_part, open_failed_part
from synthia_batch.storage.publish import EncodedShard

KEPT_BYTES = 100_000_000
"""Limit on the memory of samples that wait to be published."""
SAMPLE_BYTES = 700
"""Memory of a sample without its text, roughly."""


@dataclass(slots=True)
class _KeptSamples:
    """The samples of a shard listed so far; `is_whole` when they reach its last row."""

    samples: list[Sample] = field(default_factory=list)
    size_bytes: int = 0
    is_whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """The files of a shard and the counts of their samples.

    `dropped` of them had finished and were turned into failures by `--drop-flagged`.
    """

    encoded: EncodedShard
    tally: Tally
    dropped: int


@dataclass(slots=True, kw_only=True)
class Assembler:
    """Makes samples of a job's rows, and parts of its samples."""

    source: Source
    scan: Scan
    plan: PlanSpec
    part_format: PartFormat
    flagging: Flagger | None = None
    _kept: dict[int, _KeptSamples] = field(default_factory=dict)

    def list_samples(self, shard: Shard, wanted: Collection[int] | None = None) -> Iterator[Sample]:
        """Yield the samples of `shard` in order, or those with the `wanted` ordinals, read from the input.

        Samples are needed twice: to be generated and to be published. They are kept for the second time
        while there is room, since reading rows again and computing ids and seeds is the largest cost of a
        sample outside its engine.
        """
        if wanted is not None:
            yield from self._pick_samples(wanted)
            return
        room_bytes = KEPT_BYTES - sum(other.size_bytes for other in self._kept.values())
        kept = self._kept[shard.number] = _KeptSamples()
        for row in self.source.read_rows(self.scan, shard.first_row, shard.stop_row):
            samples = list(expand_row(row, self.plan))
            # Kept before they are yielded, and only while the shard is not published: publication may
            # come before the caller asks for the next sample.
            if self._kept.get(shard.number) is kept:
                self._keep(shard, row, samples, room_bytes)
            yield from samples

    def _pick_samples(self, wanted: Collection[int]) -> Iterator[Sample]:
        if not wanted:
            return
        chosen, per_row = frozenset(wanted), self.plan.samples_per_row
        rows = {ordinal // per_row for ordinal in chosen}
        for row in self.source.read_rows(self.scan, min(rows), max(rows) + 1):
            if row.index in rows:
                yield from (sample for sample in expand_row(row, self.plan) if sample.ordinal in chosen)

    def _keep(self, shard: Shard, row: Row, samples: list[Sample], room_bytes: int) -> None:
        """Add the samples of `row`, or drop all samples of `shard` if there is no room."""
        kept = self._kept[shard.number]
        kept.size_bytes += SAMPLE_BYTES * len(samples)
        kept.size_bytes += sum(len(turn.content) for turn in row.messages) + sum(map(len, row.follow_ups))
        if kept.size_bytes > room_bytes:
            del self._kept[shard.number]
            return
        kept.samples += samples
        kept.is_whole = row.index + 1 == shard.stop_row

    def encode(self, shard: Shard, outcomes: Mapping[int, Outcome]) -> Assembled:
        """Return the parts of `shard`, all of whose samples have ended with `outcomes`.

        Memory is that of one row group and of the encoded files, whatever the size of the shard.
        """
        self.source.check(self.scan)
        made, failed = open_data_part(self.part_format), open_failed_part(self.part_format)
        dropped = 0

        def encode_samples() -> Iterator[Outcome]:
            nonlocal dropped
            for sample, before, outcome in self._settle(self._take_samples(shard), outcomes):
                if isinstance(outcome, Finished):
                    made.add(DataRecord(sample, outcome))
                else:
                    failed.add(FailedRecord(sample, outcome))
                    dropped += isinstance(before, Finished)
                yield outcome

        tally = tally_records(encode_samples())
        encoded = EncodedShard(shard=shard, data=made.finish(), failed=failed.finish())
        return Assembled(encoded=encoded, tally=tally, dropped=dropped)

    def _settle(
        self, samples: Iterable[Sample], outcomes: Mapping[int, Outcome]
    ) -> Iterator[tuple[Sample, Outcome, Outcome]]:
        """Yield each sample with its outcome, before and after flags are applied."""
        apply = self.flagging.open_shard() if self.flagging is not None else None
        for sample in samples:
            outcome = outcomes[sample.ordinal]
            yield sample, outcome, apply(sample, outcome) if apply is not None else outcome

    def _take_samples(self, shard: Shard) -> Iterable[Sample]:
        kept = self._kept.pop(shard.number, None)
        if kept is not None and kept.is_whole:
            return kept.samples
        rows = self.source.read_rows(self.scan, shard.first_row, shard.stop_row)
        return (sample for row in rows for sample in expand_row(row, self.plan))
