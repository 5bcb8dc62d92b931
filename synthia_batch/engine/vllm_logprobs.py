"""vLLM's log-probabilities of an answer, packed."""

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence

from vllm.logprobs import Logprob

from synthia_batch.core.types import Logprobs


def read_logprobs(token_ids: Sequence[int], places: Sequence[Mapping[int, Logprob]], count: int) -> Logprobs:
    """Return those of each of `token_ids` and of the `count` likeliest tokens in its place."""
    entries = [
        entry for token, place in zip(token_ids, places, strict=True) for entry in _sort(token, place, count)
    ]
    return Logprobs(
        width=len(entries) // max(1, len(token_ids)),
        ids=array("i", [token for token, _ in entries]),
        # A vocabulary's texts come again and again.
        tokens=tuple(sys.intern(said.decoded_token or "") for _, said in entries),
        values=array("f", [said.logprob for _, said in entries]),
    )


def _sort(token: int, place: Mapping[int, Logprob], count: int) -> Iterator[tuple[int, Logprob]]:
    """Yield the token's own entry, and those of the likeliest by their rank, which counts from 1."""
    yield token, place[token]
    ranked = {said.rank: (other, said) for other, said in place.items()}
    yield from (ranked[rank] for rank in range(1, count + 1))
