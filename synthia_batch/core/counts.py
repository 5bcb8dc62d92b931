"""Counts of finished, cut-off and failed samples."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from synthia_batch.core.types import Failed, Finished, Record

CUT_OFF = "length"
"""The finish_reason of an answer that max_tokens cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Numbers of samples: `truncated` of the `finished` were cut off; `failures` counts by code."""

    finished: int = 0
    truncated: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            finished=self.finished + other.finished,
            truncated=self.truncated + other.truncated,
            failures=Counter(self.failures) + Counter(other.failures),
        )


def tally_records(records: Iterable[Record]) -> Tally:
    """Return the counts of `records`; turns of unfinished conversations are ignored."""
    finished = truncated = 0
    failures: Counter[str] = Counter()
    for record in records:
        if isinstance(record, Finished):
            finished += 1
            truncated += record.finish_reason == CUT_OFF
        elif isinstance(record, Failed):
            failures[record.code] += 1
    return Tally(finished=finished, truncated=truncated, failures=failures)
