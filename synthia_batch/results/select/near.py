"""Near duplicates by MinHash: how much two texts have in common, from a signature of each.

What is compared are the runs of SHINGLE_LETTERS letters of each text, as sets: their similarity is the size
of the intersection by that of the union. Of two signatures it is the share of equal numbers, whose standard
error is at most 0.044 (half by the square root of SIGNATURE_NUMBERS).
"""

import math
from array import array
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synthia_batch.core.errors import UsageError

SHINGLE_LETTERS = 5
SIGNATURE_NUMBERS = 128
SIGNATURE_BYTES = 4 * SIGNATURE_NUMBERS
MOST_COMPARED = 1000
"""Samples of one group that a later one is compared with, so that texts of one form take linear time."""
_RECALL = 0.99
"""How likely two texts are compared whose similarity is the one that is asked for."""
_SEED = 0
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Near(NamedTuple):
    """A sample that is a near duplicate of `original`, a smaller number."""

    number: int
    original: int
    similarity: float


def check_library() -> str:
    """Return the library and its version, which decide the signatures.

    Raises:
        UsageError: rensa is not installed.
    """
    if find_spec("rensa") is None:
        raise UsageError("dedup: near needs rensa; run: pip install 'synthia-batch[dedup]'")
    return f"rensa {version('rensa')}"


def sign(text: str) -> bytes:
    """Return the signature of a text, SIGNATURE_BYTES long. Any white space counts as one blank."""
    from rensa import RMinHash

    text = " ".join(text.encode(errors="replace").decode().split())
    made = RMinHash(num_perm=SIGNATURE_NUMBERS, seed=_SEED)
    last = max(1, len(text) - SHINGLE_LETTERS + 1)
    made.update([text[first : first + SHINGLE_LETTERS] for first in range(last)])
    return array("I", made.digest()).tobytes()


def find_near(signatures: NDArray[np.uint32], numbers: NDArray[np.int64], near: float) -> Iterator[Near]:
    """Yield the near duplicates among the samples of these `numbers`, which ascend.

    A sample is one if it has a similarity of at least `near` with one before it that is none itself; its
    original is the first of those. Only samples are compared whose signatures are equal in one of several
    bands of numbers. The memory is some 200 bytes for each sample beside the signatures.
    """
    groups = _group(signatures, numbers, near)
    wanted = math.ceil(round(near * SIGNATURE_NUMBERS, 6))
    members: dict[int, list[int]] = {}
    for place in np.flatnonzero((groups >= 0).any(axis=1)).tolist():
        own = groups[place][groups[place] >= 0].tolist()
        before = sorted({member for group in own for member in members.get(group, ())})
        number = int(numbers[place])
        if before:
            equal = (signatures[before] == signatures[number]).sum(axis=1)
            found = np.flatnonzero(equal >= wanted)
            if len(found):
                first = int(found[0])
                yield Near(number, before[first], int(equal[first]) / SIGNATURE_NUMBERS)
                continue
        for group in own:
            if len(known := members.setdefault(group, [])) < MOST_COMPARED:
                known.append(number)


def _choose_rows(near: float) -> int:
    """Return how many numbers make a band: the most with which similar texts are compared."""
    return max(
        rows
        for rows in range(1, SIGNATURE_NUMBERS + 1)
        if rows == 1 or 1 - (1 - near**rows) ** (SIGNATURE_NUMBERS // rows) >= _RECALL
    )


def _group(signatures: NDArray[np.uint32], numbers: NDArray[np.int64], near: float) -> NDArray[np.int64]:
    """Return for each sample and band the group of the samples that are equal there, -1 if it is alone."""
    rows = _choose_rows(near)
    bands = SIGNATURE_NUMBERS // rows
    groups = np.full((len(numbers), bands), -1, np.int64)
    for band in range(bands):
        keys = np.zeros(len(numbers), np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            # Different numbers may have one key, rarely: what is compared is the signatures.
            keys = (keys ^ signatures[numbers, column]) * _FACTOR
            keys ^= keys >> np.uint64(29)
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        groups[shared, band] = inverse[shared] + band * len(numbers)
    return groups
