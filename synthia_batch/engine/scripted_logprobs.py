"""Log-probabilities for rehearsals: made up of digits of a hash, and in the order of real ones."""

from array import array
from collections.abc import Sequence

from synthia_batch.core.types import Logprobs


def write_logprobs(words: Sequence[str], count: int, picks: bytes) -> Logprobs:
    """Return those of an answer's words, each with `count` others that would have been likelier."""
    entries: list[tuple[int, str, float]] = []
    for place, word in enumerate(words):
        pick = picks[place % len(picks)]
        others = [((pick + rank) % 256, f"{word}{rank}", -(pick + rank) / 7) for rank in range(1, count + 1)]
        entries += [(pick, word, -(pick + count + 1) / 7), *others]
    return Logprobs(
        width=count + 1,
        ids=array("i", [number for number, _, _ in entries]),
        tokens=tuple(word for _, word, _ in entries),
        values=array("f", [value for _, _, value in entries]),
    )
