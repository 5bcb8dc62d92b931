"""Which samples to generate: a subset of a job (the first rows, or spread over it), and what is pending."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from blake3 import blake3

from synthia_batch.core.types import Sample, Shard, Turn
from synthia_batch.job.resolved import PlanSpec
from synthia_batch.runner.directory.run_store import RunStore

SHARDS_TOUCHED = 128
"""Most shards that a probe's samples come from: each has a journal to open and rows to read."""


@dataclass(frozen=True, slots=True)
class SampleSubset:
    """The ordinals of samples to generate, in order, each once."""

    ordinals: Sequence[int]

    def within(self, shard: Shard) -> Sequence[int]:
        """Return those of `shard`."""
        return self.ordinals[bisect_left(self.ordinals, shard.first) : bisect_left(self.ordinals, shard.stop)]


def pick_rows(rows: int, spec: PlanSpec, count: int, *, scattered: bool) -> SampleSubset:
    """Return the first sample for each system message of the first `count` rows, or of all if fewer.

    With `scattered`, the rows are spread over the input, always the same ones.
    """
    chosen = sorted(islice(scatter(rows), count)) if scattered else range(min(count, rows))
    offsets = range(0, spec.samples_per_row, spec.num_samples)
    return SampleSubset([row * spec.samples_per_row + offset for row in chosen for offset in offsets])


def pick_probe(shards: Sequence[Shard], count: int) -> SampleSubset:
    """Return `count` samples spread over the job, or all if there are fewer.

    Each sample is equally likely, and each part of the job has its share: their average estimates the
    job's. The same `count` gives the same samples, and a larger one those and more, up to the samples
    of 128 shards.
    """
    chosen = [shards[number] for number in sorted(islice(scatter(len(shards)), SHARDS_TOUCHED))]
    if count > sum(shard.samples for shard in chosen):
        chosen = list(shards)
    ends = list(accumulate(shard.samples for shard in chosen))
    places = range(ends[-1]) if count >= ends[-1] else sorted(islice(scatter(ends[-1]), count))
    return SampleSubset([_find_ordinal(place, chosen, ends) for place in places])


def scatter(total: int) -> Iterator[int]:
    """Yield the numbers below `total`, each once, so that any number of the first are evenly spread.

    A van der Corput sequence with Owen's nested scrambling: without it, every 2^n-th number would be
    taken, and of alternating rows only one half. A. Owen, "Randomly permuted (t,m,s)-nets and
    (t,s)-sequences", 1995. The scrambling is deterministic.
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
    """Return the ordinal of sample number `place` of `shards` taken together."""
    number = bisect_right(ends, place)
    shard = shards[number]
    return shard.stop - (ends[number] - place)


class PendingSamples:
    """The samples of this attempt that have not ended, in order, with their finished turns.

    `total` counts the samples of the attempt: all of the run, or of `subset`. `ended` of them had ended
    before it. With a subset, the journals of its shards are opened at once.
    """

    def __init__(self, store: RunStore, subset: SampleSubset | None = None) -> None:
        self._store = store
        self._subset = subset
        if subset is None:
            self.total, self.ended = store.samples, store.finished + store.failed
        else:
            self.total = len(subset.ordinals)
            self.ended = self.total - self._count_missing(subset)

    def __iter__(self) -> Iterator[tuple[Sample, Sequence[Turn]]]:
        store = self._store
        for state in store.unfinished:
            wanted = None if self._subset is None else self._subset.within(state.shard)
            if wanted is not None and not wanted:
                continue  # Not even its journal is opened.
            ended, turns = store.list_ended(state.shard), store.list_turns(state.shard)
            for sample in store.assembler.list_samples(state.shard, wanted):
                if sample.ordinal not in ended:
                    yield sample, turns.get(sample.ordinal, ())

    def _count_missing(self, subset: SampleSubset) -> int:
        return sum(
            len(set(wanted) - self._store.list_ended(state.shard))
            for state in self._store.unfinished
            if (wanted := subset.within(state.shard))
        )
