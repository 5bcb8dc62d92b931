"""From a shard's rows and what was made of them to the files that it becomes."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from synthia_batch.job.resolved import PlanSpec
from synthia_batch.plan import make_samples
from synthia_batch.prompts.formats import PromptFormat
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembler:
    """Knows, of one job, how to make samples of its rows and parts of its samples."""

    source: Source
    scan: Scan
    plan: PlanSpec
    prompt_format: PromptFormat
    part_format: PartFormat

    def list_samples(self, shard: Shard) -> Iterator[Sample]:
        """Yield the samples of `shard` in order, read from the input."""
        for row in self.source.read_rows(self.scan, shard.first_row, shard.stop_row):
            yield from make_samples(row, self.plan)

    def read_answer(self, outcome: Outcome) -> Outcome:
        """Return `outcome` with what the engine generated read as an answer in the job's format."""
        if isinstance(outcome, Failed):
            return outcome
        answer = self.prompt_format.read(outcome.response)
        return dataclasses.replace(outcome, response=answer.response, reasoning=answer.reasoning)

    def encode(self, shard: Shard, outcomes: Mapping[int, Outcome]) -> EncodedShard:
        """Return the parts of `shard`, all of whose samples have ended as `outcomes` says."""
        made: list[DataRecord] = []
        failed: list[FailedRecord] = []
        for sample in self.list_samples(shard):
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
