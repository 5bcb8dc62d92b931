"""From a shard's rows and what was made of them to the files that it becomes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from synthia_batch.job.resolved import PlanSpec
from synthia_batch.plan import make_samples
from synthia_batch.rows import Failed, Finished, Outcome, Sample, Shard
from synthia_batch.source import Scan, Source
from synthia_batch.store.part import (
    DataRecord,
    FailedRecord,
    PartFormat,
    encode_data_part,
    encode_failed_part,
)
from synthia_batch.store.publish import EncodedShard

KEPT_BYTES = 100_000_000
"""What samples may take, at most, between being made and being published."""
SAMPLE_BYTES = 700
"""What a sample takes beside its text, about."""


@dataclass(frozen=True, slots=True)
class _KeptSamples:
    samples: list[Sample]
    size_bytes: int


@dataclass(slots=True, kw_only=True)
class Assembler:
    """Knows, of one job, how to make samples of its rows and parts of its samples."""

    source: Source
    scan: Scan
    plan: PlanSpec
    part_format: PartFormat
    _kept: dict[int, _KeptSamples] = field(default_factory=dict)

    def list_samples(self, shard: Shard) -> Iterator[Sample]:
        """Yield the samples of `shard` in order, read from the input.

        They are needed twice, to be made and to be published. Those of a shard that was listed to
        its end are kept for the second time, as long as there is room: reading rows again and
        making their ids and seeds is the largest cost of a sample beside its engine.
        """
        kept: list[Sample] | None = []
        size_bytes = 0
        room_bytes = KEPT_BYTES - sum(other.size_bytes for other in self._kept.values())
        for row in self.source.read_rows(self.scan, shard.first_row, shard.stop_row):
            for sample in make_samples(row, self.plan):
                yield sample
                if kept is not None:
                    kept.append(sample)
            size_bytes += SAMPLE_BYTES * self.plan.samples_per_row
            size_bytes += sum(len(message.content) for message in row.messages)
            size_bytes += sum(map(len, row.follow_ups))
            if size_bytes > room_bytes:
                kept = None
        if kept is not None:
            self._kept[shard.number] = _KeptSamples(kept, size_bytes)

    def encode(self, shard: Shard, outcomes: Mapping[int, Outcome]) -> EncodedShard:
        """Return the parts of `shard`, all of whose samples have ended as `outcomes` says."""
        made: list[DataRecord] = []
        failed: list[FailedRecord] = []
        for sample in self._take_samples(shard):
            match outcomes[sample.ordinal]:
                case Finished() as outcome:
                    made.append(DataRecord(sample, outcome))
                case Failed() as outcome:
                    failed.append(FailedRecord(sample, outcome))
        return EncodedShard(
            shard=shard,
            data=encode_data_part(made, self.part_format) if made else None,
            failed=encode_failed_part(failed, self.part_format) if failed else None,
        )

    def _take_samples(self, shard: Shard) -> Sequence[Sample]:
        kept = self._kept.pop(shard.number, None)
        if kept is not None:
            return kept.samples
        rows = self.source.read_rows(self.scan, shard.first_row, shard.stop_row)
        return [sample for row in rows for sample in make_samples(row, self.plan)]
