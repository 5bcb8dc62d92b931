"""Which samples a report shows: always the same ones of the same run, whatever order they are met in."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.counts import CUT_OFF
from synthia_batch.storage.parts.columns import PartNumbers

ROWS_SIDE_BY_SIDE = 3
MOST = {"random": 10, "longest": 8, "truncated": 8}
"""How many samples of each kind are shown."""


@dataclass(frozen=True, slots=True, order=True)
class Pick:
    """A sample to show: the one at `position` of the shard `shard`. The least `key` goes first."""

    key: int
    shard: int
    position: int


@dataclass(slots=True, kw_only=True)
class Picks:
    """The `most` picks with the least keys among all that were offered."""

    most: int
    chosen: list[Pick] = field(default_factory=list)

    def offer(self, shard: int, keys: NDArray[np.uint64], positions: NDArray[np.int64]) -> None:
        """Have the samples at `positions` of a shard considered, each with its key."""
        if not self.most:
            return
        few = np.argsort(keys, kind="stable")[: self.most]
        pairs = zip(keys[few].tolist(), positions[few].tolist(), strict=True)
        self.chosen = sorted([*self.chosen, *(Pick(key, shard, at) for key, at in pairs)])[: self.most]

    @property
    def by_shard(self) -> dict[int, list[int]]:
        """The positions that were chosen, by their shard, both in order."""
        places: dict[int, list[int]] = {}
        for pick in sorted(self.chosen, key=lambda pick: (pick.shard, pick.position)):
            places.setdefault(pick.shard, []).append(pick.position)
        return places


@dataclass(slots=True)
class Choice:
    """The samples of each kind, and the `rows` whose answers are shown side by side."""

    kinds: dict[str, Picks] = field(
        default_factory=lambda: {kind: Picks(most=most) for kind, most in MOST.items()}
    )
    rows: Picks = field(default_factory=lambda: Picks(most=ROWS_SIDE_BY_SIDE))

    def consider(self, shard: int, numbers: PartNumbers) -> None:
        """Choose among the finished samples of a shard, too."""
        keys = hash_samples(numbers)
        everything = np.arange(len(keys), dtype=np.int64)
        self.kinds["random"].offer(shard, keys, everything)
        # The longest have the least key; among equals the hash decides.
        most = np.uint64(2**32 - 1)
        lengths = np.minimum(numbers.completion_tokens.astype(np.uint64), most)
        self.kinds["longest"].offer(
            shard, ((most - lengths) << np.uint64(32)) | (keys >> np.uint64(32)), everything
        )
        cut = np.array([reason == CUT_OFF for reason in numbers.reasons], dtype=bool)[numbers.reason]
        self.kinds["truncated"].offer(shard, keys[cut], everything[cut])
        # A row's samples are in one shard: its index stands for its position.
        rows = np.unique(numbers.row)
        self.rows.offer(shard, mix(rows.astype(np.uint64)), rows)


def hash_samples(numbers: PartNumbers) -> NDArray[np.uint64]:
    """Return a key for each sample that its place in the job alone decides."""
    systems = np.array([zlib.crc32(name.encode(errors="replace")) for name in numbers.systems], np.uint64)
    offset = systems[numbers.system] + numbers.index.astype(np.uint64) * np.uint64(0x1_0000_0001)
    return mix(mix(numbers.row.astype(np.uint64)) + offset)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 bits for each value that look random: SplitMix64 (Steele et al., OOPSLA 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def choose_stride(samples: int, text_bytes: int, *, most_samples: int, most_bytes: int) -> int:
    """Return n where the text of every n-th shard is to be read, so that neither limit is passed by much."""
    return max(1, -(-samples // most_samples), -(-text_bytes // most_bytes))


def take_every(stride: int, count: int) -> Sequence[int]:
    """Return every `stride`-th of `count` shards, from the middle of the first stretch on."""
    return range(min(stride // 2, count - 1), count, stride) if count else range(0)
