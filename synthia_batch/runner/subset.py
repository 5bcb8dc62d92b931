"""Which samples of a job to make before the others: the first rows, or some from all over. Pure.

What a run is to make now, all that is missing or some picks of it: the driver's view of the run store.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

from blake3 import blake3

from synthia_batch.core.types import Record, Sample, Shard, Turn
from synthia_batch.job.resolved import PlanSpec
from synthia_batch.runner.directory.run_store import RunStore
from synthia_batch.storage.recovery import Unfinished

SHARDS_TOUCHED = 128
"""A probe's samples come from so many shards at most: each has a journal to open and rows to read."""


@dataclass(frozen=True, slots=True)
class SampleSubset:
    """The ordinals of samples that are to be made, in order, each once."""

    ordinals: Sequence[int]

    def within(self, shard: Shard) -> Sequence[int]:
        """Return those of `shard`."""
        return self.ordinals[bisect_left(self.ordinals, shard.first) : bisect_left(self.ordinals, shard.stop)]


def pick_rows(rows: int, spec: PlanSpec, count: int, *, scattered: bool) -> SampleSubset:
    """Return the first sample for each system message of `count` of the rows, of all where there are fewer.

    The first rows, or where `scattered`, rows from all over the input, always the same ones.
    """
    chosen = sorted(islice(scatter(rows), count)) if scattered else range(min(count, rows))
    offsets = range(0, spec.samples_per_row, spec.num_samples)
    return SampleSubset([row * spec.samples_per_row + offset for row in chosen for offset in offsets])


def pick_probe(shards: Sequence[Shard], count: int) -> SampleSubset:
    """Return `count` samples from all over the job, or all where there are fewer.

    Each has the same chance as any other, and each part of the job has its share of them: what holds of
    them on average holds of the job. The same `count` gives the same samples, and a larger one those and
    more, up to the samples of 128 shards.
    """
    chosen = [shards[number] for number in sorted(islice(scatter(len(shards)), SHARDS_TOUCHED))]
    if count > sum(shard.samples for shard in chosen):
        chosen = list(shards)
    ends = list(accumulate(shard.samples for shard in chosen))
    places = range(ends[-1]) if count >= ends[-1] else sorted(islice(scatter(ends[-1]), count))
    return SampleSubset([_find_ordinal(place, chosen, ends) for place in places])


def scatter(total: int) -> Iterator[int]:
    """Yield the numbers below `total`, each once, so that the first few of them, however many, lie all over.

    A van der Corput sequence, which alone would take every 2^n-th number and so see one half only of
    rows that alternate, with Owen's nested scrambling: A. Owen, "Randomly permuted (t,m,s)-nets and
    (t,s)-sequences", 1995. What the scrambling draws is always the same.
    """
    bits = (total - 1).bit_length()
    places = (_scramble(number, bits) for number in range(1 << bits))
    return (place for place in places if place < total)


def _scramble(number: int, bits: int) -> int:
    place = 0
    for level in range(bits):
        flip = blake3(b"%d\0%d" % (level, place)).digest(length=1)[0] & 1
        place = place << 1 | (number >> level & 1) ^ flip
    return place


def _find_ordinal(place: int, shards: Sequence[Shard], ends: Sequence[int]) -> int:
    """Return the ordinal of the sample number `place` of `shards` taken together."""
    number = bisect_right(ends, place)
    shard = shards[number]
    return shard.stop - (ends[number] - place)


class PendingSamples:
    """The samples that this attempt is to generate, with counts of their own. Implements `OutcomeSink`."""

    def __init__(self, store: RunStore, subset: SampleSubset | None = None) -> None:
        """Take in all samples of the run, or `subset` of them. Opens the journals of the shards of picks."""
        self._store = store
        self._subset = subset
        self._others = 0 if subset is None else store.samples - len(subset.ordinals)
        self._failed_before = store.failed
        self._finished_before = store.finished
        self._ended_before = store.finished + store.failed if subset is None else self._count_ended()

    @property
    def samples(self) -> int:
        """The samples of this portion."""
        return self._store.samples - self._others

    @property
    def finished(self) -> int:
        """The samples of it made so far; of picks, those that ended earlier count as made."""
        if self._subset is None:
            return self._store.finished
        return self._ended_before + self._store.finished - self._finished_before

    @property
    def failed(self) -> int:
        """The samples of it that could not be made; of picks, since this attempt began."""
        return self._store.failed - (0 if self._subset is None else self._failed_before)

    def list_missing(self) -> Iterator[tuple[Sample, Sequence[Turn]]]:
        """Yield every sample that has not ended, in order, with the turns of it that have."""
        store = self._store
        for state in store.unfinished:
            wanted = self._list_wanted(state)
            if wanted is not None and not wanted:
                continue  # Not even its journal is opened.
            ended, turns = store.list_ended(state.shard), store.list_turns(state.shard)
            for sample in store.assembler.list_samples(state.shard, wanted):
                if sample.ordinal not in ended:
                    yield sample, turns.get(sample.ordinal, ())

    def record(self, records: Sequence[Record]) -> None:
        """Make these samples and turns durable."""
        self._store.record(records)

    def tick(self) -> None:
        """Sync what has waited long enough."""
        self._store.tick()

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the run's history."""
        self._store.note(kind, **fields)

    def _list_wanted(self, state: Unfinished) -> Sequence[int] | None:
        return None if self._subset is None else self._subset.within(state.shard)

    def _count_ended(self) -> int:
        missing = 0
        for state in self._store.unfinished:
            wanted = self._list_wanted(state)
            if wanted:
                missing += len(set(wanted) - self._store.list_ended(state.shard))
        return self.samples - missing
