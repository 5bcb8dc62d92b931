"""Which samples of a job to make before the others: the first rows, or some from all over. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from blake3 import blake3

from synthia_batch.core.types import Shard
from synthia_batch.job.resolved import PlanSpec

SHARDS_TOUCHED = 128
"""A probe's samples come from so many shards at most: each has a journal to open and rows to read."""


@dataclass(frozen=True, slots=True)
class Picks:
    """The ordinals of samples that are to be made, in order, each once."""

    ordinals: Sequence[int]

    def within(self, shard: Shard) -> Sequence[int]:
        """Return those of `shard`."""
        return self.ordinals[bisect_left(self.ordinals, shard.first) : bisect_left(self.ordinals, shard.stop)]


def pick_rows(rows: int, spec: PlanSpec, count: int, *, scattered: bool) -> Picks:
    """Return the first sample for each system message of `count` of the rows, of all where there are fewer.

    The first rows, or where `scattered`, rows from all over the input, always the same ones.
    """
    chosen = sorted(islice(scatter(rows), count)) if scattered else range(min(count, rows))
    offsets = range(0, spec.samples_per_row, spec.num_samples)
    return Picks([row * spec.samples_per_row + offset for row in chosen for offset in offsets])


def pick_probe(shards: Sequence[Shard], count: int) -> Picks:
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
    return Picks([_find_ordinal(place, chosen, ends) for place in places])


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
