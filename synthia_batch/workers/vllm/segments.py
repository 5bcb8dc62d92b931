"""The prefix cache of strict determinism: the segments of prompts, and which of them an engine has.

A cached prefix shows in the last bits of what follows only by where it was cut. So a request brings its own
cuts (`Request.cuts`), each rounded down to full blocks, and takes exactly the blocks before the last of them
from the cache: cold, warm, after a restart, in any batch. The blocks between two cuts are a segment, which a
request of its own computes from the segment before. Imports nothing of vLLM.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from synthia_batch.core.types import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The blocks of a prompt's tokens from `start` to `stop` (exclusive), each the start of a block.

    `key` is a digest of the adapter, of all tokens up to `stop`, and of the cuts among them: prompts with
    equal keys share the blocks.
    """

    key: bytes
    start: int
    stop: int


def split_prompt(request: Request, block_size: int) -> tuple[Segment, ...]:
    """Return the segments of the prompt of `request`, in order, without the tokens behind its last cut.

    At least one token stays behind, since only a computed one has logits.
    """
    last = len(request.token_ids) - 1
    stops = sorted({min(cut, last) // block_size * block_size for cut in request.cuts} - {0})
    if not stops:
        return ()
    tokens = array("I", request.token_ids)
    digest = blake2b((request.adapter or "").encode(), digest_size=16)
    segments = []
    for start, stop in zip((0, *stops), stops, strict=False):
        digest.update(b"%d:" % stop + tokens[start:stop].tobytes())
        segments.append(Segment(key=digest.digest(), start=start, stop=stop))
    return tuple(segments)


def count_taken(segments: Sequence[Segment]) -> int:
    """Return the tokens that a prompt with these segments takes from the cache."""
    return segments[-1].stop if segments else 0


@dataclass(slots=True)
class SegmentTable:
    """The segments that an engine's cache has, as far as known: the `capacity` used last.

    Blocks that no running request uses may be evicted without a word. Whoever misses them says so.
    """

    capacity: int
    _known: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def add(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return those of `segments` that the cache lacks, in order; from now on it is taken to have them."""
        missing = [segment for segment in segments if segment.key not in self._known]
        for segment in segments:
            self._known[segment.key] = None
            self._known.move_to_end(segment.key)
        while len(self._known) > self.capacity:
            self._known.popitem(last=False)
        return missing

    def forget(self, segments: Sequence[Segment], found: int) -> None:
        """Note that of `segments`, one after the other, only the first `found` tokens are in the cache."""
        for segment in segments:
            if segment.stop > found:
                self._known.pop(segment.key, None)
