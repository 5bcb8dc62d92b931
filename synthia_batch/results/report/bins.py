"""A histogram of token counts in few bins: the same on the page and in the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """A histogram: `counts[n]` samples have at least `edges[n]` and less than `edges[n + 1]` tokens.

    One bin ends at the `limit` if any sample has so many tokens; `at_limit` samples have exactly so many.
    """

    edges: Sequence[int]
    counts: Sequence[int]
    limit: int | None = None
    at_limit: int = 0

    @property
    def last_within(self) -> int | None:
        """The index of the bin that ends at the limit, None if there is none."""
        return None if self.limit is None or not self.at_limit else self.edges.index(self.limit + 1) - 1


def make_bins(counts: NDArray[np.int64], limit: int | None = None) -> Bins:
    """Return the histogram of `counts[n]` samples with n tokens, in up to MAX_BINS bins of a round width."""
    stop = len(np.trim_zeros(counts, "b"))
    (used,) = np.nonzero(counts)
    start = int(used[0]) if len(used) else 0
    width = next(
        step
        for power in range(12)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if (stop - start) <= step * (MAX_BINS - 1)
    )
    shift = 0 if limit is None else (limit + 1) % width
    first = (start - shift) // width * width + shift
    edges = list(range(first, max(stop, 1) + width, width))
    edges[0] = max(0, first)
    padded = np.zeros(edges[-1], dtype=np.int64)
    padded[: min(stop, edges[-1])] = counts[:stop]
    sums = [int(padded[low:high].sum()) for low, high in pairwise(edges)]
    while len(sums) > 1 and not sums[-1]:
        sums.pop()
        edges.pop()
    at_limit = int(counts[limit]) if limit is not None and limit < stop else 0
    return Bins(edges=edges, counts=sums, limit=limit, at_limit=at_limit)
